"""`dexport plugins build`: plugins from their sources, and a table of what their kernels take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dexport.runtime.builders.plugins import KernelResources, build_plugins, plugin_folders

REPORT = "kernels.json"
"""File beside the libraries: one object for every kernel and architecture."""


def build_plugins_command(output: Path, sms: Sequence[str], tensorrt_include: Path | None) -> None:
    """Builds all plugins, prints the most that a kernel of each takes, and writes all of it to `REPORT`."""
    folders = plugin_folders()
    resources = build_plugins(folders, output, sms, tensorrt_include)
    (output / REPORT).write_text(json.dumps([asdict(kernel) for kernel in resources], indent=1) + "\n", encoding="utf-8")
    Console(width=100).print(resource_table(resources))
    names = ", ".join(folder.name for folder in folders)
    said = f"for TensorRT: {names}" if tensorrt_include is not None else "none for TensorRT, which takes --tensorrt-include"
    print(f"{output}: {len(folders)} libraries, {said}; {output / REPORT} lists every kernel")


def resource_table(resources: Sequence[KernelResources]) -> Table:
    """One row for every plugin and architecture: the most that one of its kernels takes."""
    table = Table("plugin", "sm", title="The most that a kernel takes")
    for column in ("kernels", "registers", "shared bytes", "spilled bytes"):
        table.add_column(column, justify="right")
    # ptxas goes architecture by architecture.
    for (plugin, sm), group in groupby(sorted(resources, key=lambda k: (k.plugin, int(k.sm))), key=lambda k: (k.plugin, k.sm)):
        kernels = list(group)
        known = [kernel.shared_bytes for kernel in kernels if kernel.shared_bytes is not None]
        registers, spilled = (max(values) for values in zip(*((k.registers, k.spilled_bytes) for k in kernels)))
        table.add_row(plugin, sm, str(len(kernels)), str(registers), str(max(known)) if known else "by launcher", str(spilled))
    return table
