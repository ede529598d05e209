"""Writes quality.md from what `recipes.py` and `peers.py` measured: the table that the README links to.

python benchmarks/quality_table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from provenance import RESULTS

from dexport.exporter.quality import score_change

PAGE = Path(__file__).parent / "quality.md"
_HEAD = """# What recipes make of the pictures

The reference pipeline `examples/shapes-t2i`, 20 steps, guidance 4.0, every row at the same seeds as the unquantized model.
PSNR and SSIM over 64 pictures (median, 10th percentile); cosine of the last latent (median); the detector's score over 512 pictures,
or as many as it says, with the paired bootstrap's 95 % interval of its difference to the unquantized model (0.9928 over 512). Bits
per weight are over the linears that are quantized, scales and branches counted: a branch of rank 32 is much beside layers of 192 inputs.
Peers quantize the same layers, calibrated on the same 32 prompts. Made by `recipes.py` and `peers.py`; figures in `results/`.
"""
_MIXED = """## Mixed against uniform precision at the same bytes

INT4 weights in blocks of one size for all layers, beside `vidit-q-mp`, which gives every layer blocks of 64, 32 or 16 or 8 bits:
median PSNR, and the mean of the paired difference over 64 pictures with its bootstrap's 95 % interval.
"""
_PAIRS = (("uniform blocks of 24", "mixed, 4.67 bits"), ("uniform blocks of 16", "mixed, 5.00 bits"))
_SCORED = 512
_COLUMNS = ("bits", "PSNR", "p10", "SSIM", "p10", "cosine", "score", "difference")


def main() -> None:
    """Writes the page."""
    recipes, peers = (json.loads((RESULTS / f"{name}.json").read_text())["rows"] for name in ("recipes", "peers"))
    parts = [_HEAD, "## Recipes\n", _table("recipe", [r for r in recipes if "," not in r["recipe"]])]
    parts += ["## Variants of them, one thing changed\n", _table("recipe", [r for r in recipes if "," in r["recipe"]])]
    parts += [_MIXED, _mixed({r["recipe"]: r for r in recipes})]
    parts += ["## Other quantizers on the same weights\n", _table("peer", peers)]
    PAGE.write_text("\n".join(parts), encoding="utf-8")


def _table(name: str, rows: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join((name, *_COLUMNS)) + " |", "|---|" + "---:|" * len(_COLUMNS)]
    lines += [_line(name, row) for row in rows]
    return "\n".join(lines) + "\n"


def _mixed(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| bits | uniform | mixed | difference |", "|---:|---:|---:|---:|"]
    for uniform, mixed in _PAIRS:
        one, other = rows[f"vidit-q-mp, {uniform}"], rows[f"vidit-q-mp, {mixed}"]
        change = score_change(*(np.array(row["psnr of every picture"]) for row in (one, other)))
        difference = f"{change.change:+.2f} dB [{change.low:+.2f}, {change.high:+.2f}]"
        lines.append(f"| {one['bits']:.2f}, {other['bits']:.2f} | {one['psnr']:.1f} | {other['psnr']:.1f} | {difference} |")
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
        f"{row['score']:.4f}" + ("" if row["pictures"] == _SCORED else f" of {row['pictures']}"),
        f"[{row['low']:+.4f}, {row['high']:+.4f}]",
    )
    return f"| {row[name]} | " + " | ".join(figures) + " |"


if __name__ == "__main__":
    main()
