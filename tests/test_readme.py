"""The README is true: its commands run, its table is what the code says, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from dexport.targets.catalogue import all_targets
from dexport.targets.target import Target

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#:]+)\)")
_NOT_COPIED = {".git", ".venv", "demo", "build", "dist"}

_NOT_INHERITED = {"VIRTUAL_ENV", "VENV", "MAKEFLAGS", "MAKEOVERRIDES", "PYTHONPATH", "PYTHONHOME"}  # of a `make test` around this

_HEADER = ("| `--target` | memory | builds in | the device also has | run by the tests |", "|---|---|---|---|---|")
_RUN_BY_TESTS = {
    "openvino": "yes",
    "onnxruntime-cpu": "yes",
    "onnxruntime-cuda": "no",
    "tensorrt-rtx": "engines are built and their kernels read, not run",
    "tensorrt-kit": "kits are written and checked, engines not built",
}


def table() -> list[str]:
    """The README's table of targets: neighbours that differ in memory only share a line."""
    groups: list[list[Target]] = []
    for target in all_targets():
        if not target.buildable:
            continue
        if groups and (groups[-1][0].backend, groups[-1][0].formats) == (target.backend, target.formats):
            groups[-1].append(target)
        else:
            groups.append([target])
    return [*_HEADER, *map(_line, groups)]


def _line(group: list[Target]) -> str:
    first = group[0]
    sizes = sorted({target.memory_gib for target in group if target.memory_gib is not None})
    memory = "" if not sizes else f"{sizes[0]:g} GiB" if len(sizes) == 1 else f"{sizes[0]:g} to {sizes[-1]:g} GiB"
    ids = ", ".join(f"`{target.device}`" for target in group)
    others = " ".join(name for name in first.formats if name not in first.precisions)
    return f"| {ids} | {memory} | {' '.join(first.precisions)} | {others} | {_RUN_BY_TESTS[first.backend]} |"


def test_the_table_of_targets_is_generated() -> None:
    lines = [line for line in TEXT.splitlines() if line.startswith("|")]
    assert lines == table(), "replace the table in README.md by:\n" + "\n".join(table())


def test_links_lead_somewhere() -> None:
    missing = [link for link in _LINK.findall(TEXT) if not (ROOT / link).exists()]
    assert not missing


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 100


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this checkout in which `make` finds its environment installed: one that sees this Python's packages."""
    copy = tmp_path / "dexport"
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.name in _NOT_COPIED or path.name.startswith("."):
            continue
        if path.is_dir() and path.name == "examples":
            (copy / path.name).symlink_to(path)
        elif path.is_dir():
            shutil.copytree(path, copy / path.name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "build"))
        else:
            shutil.copy(path, copy / path.name)
    environment = copy / ".venv"
    venv.create(environment, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    (site / "packages.pth").write_text(f"{copy}\n{sysconfig.get_path('purelib')}\n")
    command = environment / "bin" / "dexport"
    command.write_text(f"#!{environment}/bin/python\nimport sys\nfrom dexport.cli import main\nsys.exit(main())\n")
    command.chmod(0o755)
    for stamp in (".installed-demo", ".installed-test"):
        (environment / stamp).touch()
    return copy


@pytest.mark.skipif(
    not (ROOT / "examples/shapes-t2i/pipeline/model_index.json").exists(), reason="the reference pipeline is not in this checkout"
)
def test_its_commands_run(checkout: Path) -> None:
    blocks = _BLOCK.findall(TEXT)
    assert {language for language, _ in blocks} == {"sh", "python"}
    script = "set -eu\n" + "\n".join(code if language == "sh" else f"python - <<'END'\n{code}END" for language, code in blocks)
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    result = subprocess.run(["bash", "-c", script], cwd=checkout, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert sorted(path.name for path in (checkout / "demo").iterdir()) == ["1.png", "2.png", "3.png", "4.png", "shapes.dxb"]
    assert (checkout / "out.png").stat().st_size > 0
    assert (checkout / "ring.png").stat().st_size > 0


if __name__ == "__main__":
    sys.stdout.write("\n".join(table()) + "\n")
