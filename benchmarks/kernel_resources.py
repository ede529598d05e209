"""What every kernel of the plugins takes on every architecture: registers, shared memory, spills, as nvcc's assembler reports them.

Needs nvcc and no GPU; says nothing about speed. A kernel that spills ends it with an error.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path

from provenance import write_result

from dexport.runtime.builders.plugins import build_plugins, find_nvcc, plugin_folders


def main() -> None:
    """Compiles all plugins and writes benchmarks/results/kernel_resources.json."""
    said = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"V([\d.]+)", said)
    with tempfile.TemporaryDirectory() as place:
        kernels = build_plugins(plugin_folders(), Path(place))
    rows = [asdict(kernel) | {"compiler": f"nvcc {version[1] if version else said.strip()}"} for kernel in kernels]
    write_result("kernel_resources", 0, rows, "Kernels on every architecture")


if __name__ == "__main__":
    main()
