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
    resources = build_plugins(plugin_folders(), output, sms, tensorrt_include)
    (output / REPORT).write_text(json.dumps([asdict(kernel) for kernel in resources], indent=1) + "\n", encoding="utf-8")
    Console(width=100).print(resource_table(resources))
    wrapped = "with their TensorRT wrappers" if tensorrt_include is not None else "without TensorRT wrappers (--tensorrt-include adds them)"
    print(f"{output}: {len({kernel.plugin for kernel in resources})} plugins {wrapped}; {output / REPORT} lists every kernel")


def resource_table(resources: Sequence[KernelResources]) -> Table:
    """One row for every plugin and architecture: the most that one of its kernels takes."""
    table = Table("plugin", "sm", title="The most that a kernel takes")
    for column in ("kernels", "registers", "shared bytes", "spilled bytes"):
        table.add_column(column, justify="right")
    # ptxas goes architecture by architecture.
    for (plugin, sm), group in groupby(sorted(resources, key=lambda k: (k.plugin, int(k.sm))), key=lambda k: (k.plugin, k.sm)):
        kernels = list(group)
        most = (max(values) for values in zip(*((k.registers, k.shared_bytes, k.spilled_bytes) for k in kernels)))
        table.add_row(plugin, sm, str(len(kernels)), *map(str, most))
    return table
