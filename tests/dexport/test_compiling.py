"""`dexport plugins build` prints the most that kernels take, and says in one line what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from dexport import cli, compiling
from dexport.compiling import build_plugins_command, resource_table
from dexport.runtime.builders.plugins import KernelResources

KERNELS = [
    KernelResources("attention", "wide", "120", 200, 1000, 0),
    KernelResources("attention", "wide", "87", 255, 1000, 0),
    KernelResources("attention", "narrow", "87", 100, 9000, 0),
    KernelResources("linear", "multiply", "87", 50, None, 0),
]


def test_the_table_has_the_most_of_every_architecture() -> None:
    console = Console(width=100, record=True, quiet=True)
    console.quiet = False
    with console.capture() as captured:
        console.print(resource_table(KERNELS))
    rows = [line.replace("│", " ").split() for line in captured.get().splitlines() if "attention" in line or "linear" in line]
    assert rows == [
        ["attention", "87", "2", "255", "9000", "0"],
        ["attention", "120", "1", "200", "1000", "0"],
        ["linear", "87", "1", "50", "by", "launcher", "0"],
    ]


def test_writes_every_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []
    monkeypatch.setattr(compiling, "build_plugins", lambda *given: asked.append(given) or KERNELS)
    build_plugins_command(tmp_path, ("87",), None)
    assert asked[0][1:] == (tmp_path, ("87",), None) and "block_sparse_attention" in {folder.name for folder in asked[0][0]}
    assert [row["kernel"] for row in json.loads((tmp_path / "kernels.json").read_text())] == ["wide", "wide", "narrow", "multiply"]
    assert "libraries, none for TensorRT, which takes --tensorrt-include; " in capsys.readouterr().out
    build_plugins_command(tmp_path, (), tmp_path)
    assert "for TensorRT: block_sparse_attention, lowrank_linear; " in capsys.readouterr().out


def test_a_wrong_architecture_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Whether nvcc is missing or does not know the architecture."""
    assert cli.main(["plugins", "build", "--sm", "12", "-o", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(("error: plugins: expected nvcc", "error: --sm 12: expected one of 80")) and message.count("\n") == 1
