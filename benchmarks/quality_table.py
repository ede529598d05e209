"""Writes quality.md from what `recipes.py` and `peers.py` measured: the table that the README links to.

python benchmarks/quality_table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from provenance import RESULTS

PAGE = Path(__file__).parent / "quality.md"
_HEAD = """# What recipes make of the pictures

The reference pipeline `examples/shapes-t2i`, 20 steps, guidance 4.0, every row at the same seeds as the unquantized model.
PSNR and SSIM over 64 pictures (median, 10th percentile); cosine of the last latent (median); the detector's score over 512
pictures with the paired bootstrap's 95 % interval of its difference to the unquantized model (0.9928). Bits per weight are over
the linears that are quantized, scales and branches counted: a branch of rank 32 weighs much beside layers of 192 inputs.
Peers quantize the same layers, calibrated on the same 32 prompts. Made by `recipes.py` and `peers.py`; figures in `results/`.
"""
_COLUMNS = ("bits", "PSNR", "p10", "SSIM", "p10", "cosine", "score", "difference")


def main() -> None:
    """Writes the page."""
    recipes, peers = (json.loads((RESULTS / f"{name}.json").read_text())["rows"] for name in ("recipes", "peers"))
    parts = [_HEAD, "## Recipes\n", _table("recipe", [r for r in recipes if "," not in r["recipe"]])]
    parts += ["## Variants of them, one thing changed\n", _table("recipe", [r for r in recipes if "," in r["recipe"]])]
    parts += ["## Other quantizers on the same weights\n", _table("peer", peers)]
    PAGE.write_text("\n".join(parts), encoding="utf-8")


def _table(name: str, rows: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join((name, *_COLUMNS)) + " |", "|---|" + "---:|" * len(_COLUMNS)]
    lines += [_line(name, row) for row in rows]
    return "\n".join(lines) + "\n"


def _line(name: str, row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"| {row[name]} | {row['failed']} |" + " |" * (len(_COLUMNS) - 1)
    figures = (
        f"{row['bits']:.2f}",
        f"{row['psnr']:.1f}",
        f"{row['psnr p10']:.1f}",
        f"{row['ssim']:.4f}",
        f"{row['ssim p10']:.4f}",
        f"{row['cosine']:.4f}",
        f"{row['score']:.4f}",
        f"[{row['low']:+.4f}, {row['high']:+.4f}]",
    )
    return f"| {row[name]} | " + " | ".join(figures) + " |"


if __name__ == "__main__":
    main()
