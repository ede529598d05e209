"""What every result file carries: commit, versions, machine, seed. And the one way in which results are written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_PACKAGES = ("dexport", "torch", "diffusers", "transformers", "onnx", "onnxruntime", "openvino", "tensorrt-rtx", "numpy")
RESULTS = Path(__file__).parent / "results"


def provenance(seed: int) -> dict[str, Any]:
    """Commit (with a mark if the tree is dirty), versions, processor and its instruction sets, date."""
    return {
        **_commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "processor": _processor(),
        "seed": seed,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def write_result(name: str, seed: int, rows: Sequence[dict[str, Any]], title: str) -> Path:
    """Prints the rows as a table and writes them with their provenance to results/NAME.json."""
    table = Table(title=title)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column, justify="left" if isinstance(rows[0].get(column), str) else "right")
    for row in rows:
        table.add_row(*(_shown(row.get(column, "")) for column in columns))
    Console(width=140).print(table)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(provenance(seed) | {"rows": list(rows)}, indent=1) + "\n")
    print(f"written: {path}")
    return path


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _commit() -> dict[str, Any]:
    """A copy without its history is told what it is a copy of."""
    if told := os.environ.get("DEXPORT_COMMIT"):
        return {"commit": told, "dirty": False}
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = next((line.split(":")[1].split() for line in info.splitlines() if line.startswith("flags")), [])
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), platform.machine())
    return {
        "model": model,
        "cores": len([line for line in info.splitlines() if line.startswith("processor")]),
        "isa": [f for f in wanted if f in flags],
    }
