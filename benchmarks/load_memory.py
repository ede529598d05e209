"""What does loading a bundle cost in private memory? Our reader maps weights and copies none; what the backend repacks is its own.

A PixArt bundle of about 400 MB for the CPU: private memory after opening and verifying it, after OpenVINO has read each component, and
after it has compiled it, per component, in a fresh process.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from provenance import write_result

SEED = 0
LIMIT_MIB = 32.0


def private_mib() -> float:
    """Memory that only this process has and that no file backs (pages of a mapped file can be dropped at any time), in MiB."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_Dirty")) / 1024


def measured(path: Path) -> list[dict[str, Any]]:
    """Opens the bundle, then runs its golden inputs component by component."""
    from dexport.runtime.bundle import open_bundle
    from dexport.runtime.engines import open_engine

    started = private_mib()
    bundle = open_bundle(path)
    mapped = {
        name: bundle.map(file) for name, c in bundle.manifest.components.items() for file in c.variants[0].files if file.endswith(".bin")
    }
    for array in mapped.values():
        array[::4096].sum()  # touches every page
    total = sum(array.nbytes for array in mapped.values()) / 2**20
    rows = [{"stage": "our reader: opened, verified, mapped", "weights MiB": total, "private MiB": private_mib() - started}]
    import openvino

    openvino.Core()
    for golden in bundle.manifest.golden:
        if golden.component == "pipeline":
            continue
        before = private_mib()
        engine = open_engine(bundle, golden.component, bundle.manifest.sizes[0])
        read = private_mib() - before
        engine(bundle.tensors(golden.inputs))
        weights = bundle.manifest.components[golden.component].weight_bytes / 2**20
        rows.append({"stage": f"{golden.component}: read by OpenVINO", "weights MiB": weights, "private MiB": read})
        rows.append({"stage": f"{golden.component}: compiled (repacked)", "weights MiB": weights, "private MiB": private_mib() - before})
        engine.close()
        del engine
        gc.collect()
    return rows


def main() -> int:
    """1 if our reader takes more than 32 MiB."""
    if len(sys.argv) == 2:
        print(json.dumps(measured(Path(sys.argv[1]))))
        return 0
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        from random_pixart import random_pixart

        from dexport.exporter.build import build
        from dexport.exporter.options import BuildOptions

        model = random_pixart(Path(folder) / "model", layers=20, heads=9, head_dim=64, caption=512, sample_size=32, seed=SEED)
        bundle = build(BuildOptions(model=str(model), target="cpu", steps=(2,)), Path(folder) / "bundle.dxb")
        done = subprocess.run([sys.executable, __file__, str(bundle)], check=True, capture_output=True, text=True)
    rows = json.loads(done.stdout.strip().splitlines()[-1])
    write_result("load_memory", SEED, rows, "private memory of a loaded bundle, MiB")
    return 0 if rows[0]["private MiB"] <= LIMIT_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
