"""The house keeps its shape: who may import whom, how long files and functions are, that every module has its test."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("exporter", "passes", "plugins", "runtime", "targets")

MAY_IMPORT = {
    "dexport": {"exporter", "runtime", "targets"},
    "exporter": {"passes", "plugins", "runtime", "targets"},
    "passes": {"plugins", "runtime", "targets"},
    "plugins": set[str](),
    "runtime": {"targets"},
    "targets": set[str](),
}
"""Room -> rooms it may import, itself and `dexport.errors` apart. Read beside the diagram in the README."""

HEAVY = {"torch", "diffusers", "transformers", "accelerate", "onnx", "onnxscript", "onnx_ir"}
LIGHT_ROOMS = ("runtime", "targets", "dexport")
"""Rooms that run where the packages in HEAVY are not installed."""

MOST_LINES, MOST_BODY_LINES = 500, 60

TESTED_ELSEWHERE = {
    "dexport/__init__.py": "dexport/test_api.py",
    "dexport/__main__.py": "dexport/test_bare.py",
    "dexport/errors.py": "dexport/test_cli.py",
    "dexport/running.py": "dexport/test_commands.py",
    # Engines and what makes them are exercised by whole bundles.
    "runtime/builders/openvino.py": "runtime/backends/test_openvino.py",
    "runtime/pipeline.py": "exporter/test_build.py",
    "runtime/builders/builder.py": "runtime/builders/test_tensorrt.py",
    "runtime/finalize/prebuilt.py": "runtime/finalize/test_finalize.py",
    "exporter/engines/jetson_scripts.py": "exporter/engines/test_jetson.py",
    # Shared parts of families, tested through each family that uses them.
    "exporter/pipelines/__init__.py": "exporter/test_bad_input.py",
    "exporter/pipelines/clip.py": "exporter/pipelines/test_stable_diffusion.py",
    "exporter/pipelines/family.py": "exporter/test_components.py",
    "exporter/pipelines/rotary.py": "exporter/pipelines/test_flux.py",
    "exporter/pipelines/unet.py": "exporter/pipelines/test_stable_diffusion.py",
    "exporter/pipelines/wan_decoder.py": "exporter/pipelines/test_wan.py",
    # Steps of one computation, which only mean something together.
    "exporter/scheduler_run.py": "exporter/test_solver.py",
    "exporter/split.py": "exporter/test_torch_pipeline.py",
    "exporter/quantizer.py": "exporter/test_build_recipe.py",
    "exporter/build_report.py": "exporter/test_build_recipe.py",
    "exporter/solver_program.py": "exporter/test_solver.py",
    "exporter/step_graphs.py": "exporter/test_step_component.py",
    "exporter/step_trace.py": "exporter/test_step_component.py",
    "runtime/program_check.py": "runtime/test_program.py",
    "passes/quantization/values.py": "passes/quantization/test_quantize.py",
    # Data, checked as a whole.
    "targets/host.py": "targets/test_catalogue.py",
    "targets/jetson.py": "targets/test_catalogue.py",
    "targets/rates.py": "targets/test_target.py",
    "targets/rtx.py": "targets/test_catalogue.py",
    "targets/source.py": "targets/test_target.py",
    "targets/tensorrt.py": "targets/test_formats.py",
}
"""Module -> the file in tests/ that tests it, where it has none of its own name."""


def _modules(room: str) -> list[Path]:
    """The Python files of a room; the links in dexport/ are the rooms again and are left out."""
    found = (ROOT / room).glob("*.py") if room == "dexport" else (ROOT / room).rglob("*.py")
    return sorted(path.relative_to(ROOT) for path in found)


def _all_modules() -> list[Path]:
    return [path for room in MAY_IMPORT for path in _modules(room)]


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, at any depth; `from a import b` is a and a.b."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by full name, not relatively"
            assert node.module is not None
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_rooms_import_only_what_they_may() -> None:
    wrong = []
    for room, allowed in MAY_IMPORT.items():
        for path in _modules(room):
            for line, name in _imports(path):
                package, _, rest = name.partition(".")
                other = rest.partition(".")[0]
                if package in ROOMS:
                    wrong.append(f"{path}:{line}: imports {name}; write dexport.{name}")
                elif package == "dexport" and other in ROOMS and other != room and other not in allowed:
                    wrong.append(f"{path}:{line}: {room} may not import dexport.{other}")
                elif package == "dexport" and room != "dexport" and other and other not in (*ROOMS, "errors"):
                    wrong.append(f"{path}:{line}: {room} may not import the front door (dexport.{other})")
    assert not wrong, "\n".join(wrong)


def test_runtime_and_targets_need_no_heavy_package() -> None:
    wrong = [
        f"{path}:{line}: {room} may not import {name}"
        for room in LIGHT_ROOMS
        for path in _modules(room)
        for line, name in _imports(path)
        if name.partition(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_files_and_functions_are_short() -> None:
    wrong = []
    for path in _all_modules():
        text = (ROOT / path).read_text(encoding="utf-8")
        if (lines := text.count("\n")) > MOST_LINES:
            wrong.append(f"{path}: {lines} lines, at most {MOST_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (lines := _body_lines(node)) > MOST_BODY_LINES:
                wrong.append(f"{path}:{node.lineno}: {node.name} has a body of {lines} lines, at most {MOST_BODY_LINES}")
    assert not wrong, "\n".join(wrong)


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_every_module_has_its_test() -> None:
    """runtime/noise.py has tests/runtime/test_noise.py, or test_noise_<part>.py; what has neither is in TESTED_ELSEWHERE."""
    wrong = []
    for path in _all_modules():
        folder = ROOT / "tests" / path.parent
        own = [*folder.glob(f"test_{path.stem}.py"), *folder.glob(f"test_{path.stem}_*.py")]
        elsewhere = TESTED_ELSEWHERE.get(str(path))
        if elsewhere is not None and not (ROOT / "tests" / elsewhere).exists():
            wrong.append(f"{path}: TESTED_ELSEWHERE names tests/{elsewhere}, which does not exist")
        elif elsewhere is None and not own and _has_code(path):
            wrong.append(f"{path}: no tests/{path.parent}/test_{path.name}")
    assert not wrong, "\n".join(wrong)
    assert set(TESTED_ELSEWHERE) <= {str(path) for path in _all_modules()}


def _has_code(path: Path) -> bool:
    """Whether a file holds more than a docstring."""
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


def test_the_front_door_links_to_every_room() -> None:
    for room in ROOMS:
        link = ROOT / "dexport" / room
        assert link.is_symlink() and link.readlink() == Path("..") / room


@pytest.mark.parametrize("room", [*ROOMS, "benchmarks", "tests"])
def test_every_room_has_a_short_readme(room: str) -> None:
    lines = (ROOT / room / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 15, f"{room}/README.md has {len(lines)} lines, at most 15"


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: which files belong to the repository is not known")
    # The words are put together here so that this file does not hold them itself.
    words = [f"/{top}/".encode() for top in ("work", "root", "home" + "/user")]
    wrong = []
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if not name or path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" not in content[:8192]:
            wrong += [f"{name}: {word.decode()}" for word in words if word in content]
    assert not wrong, "\n".join(wrong)
