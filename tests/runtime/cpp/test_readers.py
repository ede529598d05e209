"""What strangers send is refused by the C++ readers where the Python ones refuse it, in the same words."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dexport.errors import DexportError
from dexport.runtime.archive import list_archive
from dexport.runtime.bundle import open_bundle
from dexport.runtime.manifest import MANIFEST_NAME, manifest_from_json
from dexport.runtime.program import program_from_json, program_to_json
from dexport.runtime.program_check import check_program
from dexport.runtime.tensor_file import tensors_from_bytes
from tests.runtime import test_archive, test_manifest, test_program, test_tensor_file
from tests.runtime.sample_bundle import WEIGHTS, complete_manifest, edited_manifest, sample_files, write_sample

_SYNTAX = re.compile(r"(well-formed JSON in UTF-8, got )(?!the key|the number [-\d]|an integer).*(; get)")
"""What is wrong with the grammar of JSON, every parser says in its own words."""


def _cases(test: Any) -> list[Any]:
    """The values that a test of the Python reader is parametrized with."""
    cases: list[Any] = test.pytestmark[0].args[1]
    return cases


def _answer(read: Callable[[], object]) -> str:
    try:
        read()
    except DexportError as error:
        return str(error)
    return "ok"


def _compare(tool: Path, arguments: Sequence[str | Path], files: Sequence[Path], read: Callable[[Path], object]) -> list[str]:
    """Asserts that both readers give the same answers; returns them."""
    found = subprocess.run([tool, *arguments, *files], capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    wanted = [_answer(lambda file=file: read(file)) for file in files]  # type: ignore[misc]
    assert [_SYNTAX.sub(r"\1...\2", line) for line in found] == [_SYNTAX.sub(r"\1...\2", line) for line in wanted]
    return found


def _written(folder: Path, contents: Iterable[bytes]) -> list[Path]:
    paths = []
    for index, content in enumerate(contents):
        paths.append(folder / f"{index}.dxb")
        paths[-1].write_bytes(content)
    return paths


def _mutations(content: bytes, count: int, seed: int) -> list[bytes]:
    """The content with a byte changed, or a few left out or doubled; once each, as the first of several errors is anyone's choice."""
    generator, result = random.Random(seed), []
    for _ in range(count):
        changed, at, length = bytearray(content), generator.randrange(len(content)), generator.randint(1, 8)
        kind = generator.randrange(3)
        if kind == 0:
            changed[at] = generator.choice([0, 1, 0x2D, 0x30, 0x39, 0x65, 0x7B, 0x7F, 0xFF, changed[at] ^ 1])
        elif kind == 1:
            del changed[at : at + length]
        else:
            changed[at:at] = changed[at : at + length]
        result.append(bytes(changed))
    return result


@pytest.fixture(scope="module")
def tool(cpp_build: Path) -> Path:
    return cpp_build / "tests" / "read_files"


def test_archives(tool: Path, tmp_path: Path) -> None:
    sample = write_sample(tmp_path / "sample.dxb").read_bytes()
    cases = [case[0] for case in _cases(test_archive.test_every_other_zip_is_refused)]
    files = _written(
        tmp_path, [sample, *cases, *_mutations(sample[-2000:], 60, 1), *(sample[:-2000] + m for m in _mutations(sample[-2000:], 200, 2))]
    )
    answers = _compare(tool, ["archive"], files, list_archive)
    assert answers[0] == "ok" and len(set(answers)) > 30


def test_manifests(tool: Path, tmp_path: Path) -> None:
    sample = edited_manifest(lambda document: None)
    cases = [edited_manifest(case[0]) for case in _cases(test_manifest.test_a_wrong_manifest_is_refused_naming_the_place)]
    cases += [edited_manifest(lambda document: document.update(schema=2, dexport="3.0"))]
    files = _written(tmp_path, [sample, *cases, *_mutations(sample, 300, 3)])
    answers = _compare(tool, ["manifest"], files, lambda file: manifest_from_json(file.read_bytes(), str(file)))
    assert answers[0] == "ok" and len(set(answers)) > 60


def test_programs(tool: Path, tmp_path: Path) -> None:
    sample = program_to_json(test_program.program()).encode()
    cases = [test_program._changed(path, value) for path, value, _ in _cases(test_program.test_the_schema_refuses_naming_the_place)]
    cases += [text for text, _ in _cases(test_program.test_hostile_text_is_refused)]
    files = _written(tmp_path, [sample, *cases, *_mutations(sample, 300, 4)])
    answers = _compare(tool, ["program"], files, lambda file: program_from_json(file.read_bytes(), str(file)))
    assert answers[0] == "ok" and len(set(answers)) > 60


def test_the_meaning_of_programs(tool: Path, tmp_path: Path) -> None:
    variants = complete_manifest().components["loop"].variants
    components = {name: replace(component, variants=variants) for name, component in test_program.COMPONENTS.items()}
    manifest = edited_manifest(
        lambda document: document.update(components=json.loads(json.dumps({n: asdict(c) for n, c in components.items()})), golden=[])
    )
    (tmp_path / "manifest.json").write_bytes(manifest)
    cases = [program_to_json(test_program.program(**changes)).encode() for changes, _ in test_program.WRONG]
    sample = program_to_json(test_program.program()).encode()
    files = _written(tmp_path, [sample, *cases, *_mutations(sample, 300, 5)])
    answers = _compare(
        tool,
        ["checked", tmp_path / "manifest.json"],
        files,
        lambda file: check_program(program_from_json(file.read_bytes(), str(file)), components),
    )
    assert answers[0] == "ok" and len(set(answers)) > 60


def test_tensor_files(tool: Path, tmp_path: Path) -> None:
    sample = sample_files()["programs/main.safetensors"]
    cases = [case[0].tobytes() for case in _cases(test_tensor_file.test_a_malformed_file_is_refused)]
    files = _written(tmp_path, [sample, *cases, *_mutations(sample, 300, 6)])
    answers = _compare(tool, ["tensors"], files, lambda file: tensors_from_bytes(np.frombuffer(file.read_bytes(), np.uint8), str(file)))
    assert answers[0] == "ok" and len(set(answers)) > 20


def test_bundles(tool: Path, tmp_path: Path) -> None:
    """Files that are missing, too many, changed, cut, linked or elsewhere."""

    def folder(name: str, damage: Callable[[Path], object]) -> Path:
        path = write_sample(tmp_path / name)
        damage(path)
        return path

    def linked(path: Path) -> None:
        (path / WEIGHTS).rename(tmp_path / "outside.bin")
        (path / WEIGHTS).symlink_to(tmp_path / "outside.bin")

    archive = write_sample(tmp_path / "whole.dxb")
    cut = tmp_path / "cut.dxb"
    cut.write_bytes(archive.read_bytes()[:-1])
    flipped = tmp_path / "flipped.dxb"
    flipped.write_bytes(archive.read_bytes().replace(sample_files()[WEIGHTS], bytes(24)))
    model = tmp_path / "model"
    model.mkdir()
    (model / "model_index.json").write_text("{}")
    bundles = [
        archive,
        folder("whole", lambda path: None),
        folder("missing", lambda path: (path / WEIGHTS).unlink()),
        folder("extra", lambda path: (path / "notes.txt").touch()),
        folder("short", lambda path: (path / WEIGHTS).write_bytes(bytes(20))),
        folder("changed", lambda path: (path / WEIGHTS).write_bytes(bytes(24))),
        folder("bare", lambda path: (path / MANIFEST_NAME).unlink()),
        folder("linked", linked),
        folder(
            "outside",
            lambda path: (path / MANIFEST_NAME).write_bytes(edited_manifest(lambda d: d["files"].update({"../x": d["files"][WEIGHTS]}))),
        ),
        folder("newer", lambda path: (path / MANIFEST_NAME).write_bytes(edited_manifest(lambda d: d.update(schema=2)))),
        cut,
        flipped,
        model,
        tmp_path / "nowhere",
    ]
    answers = _compare(tool, ["bundle"], bundles, open_bundle)
    assert answers[:2] == ["ok", "ok"] and len(set(answers)) == len(bundles) - 1
    shutil.rmtree(model)
