"""At least 10,000 damaged and hostile inputs: only DexportError may come out, no hang, no memory beyond a bound.

Cases are made by a seeded generator from one small valid bundle, so that a failure names the case that made it. The parts
are fuzzed in memory, where cases are cheap, and the whole reader on disk, in both forms.
"""

import copy
import io
import json
import resource
import signal
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from dexport.errors import DexportError
from dexport.runtime.archive import entries_of_archive
from dexport.runtime.bundle import ONNX_DOMAINS, open_bundle
from dexport.runtime.manifest import MANIFEST_NAME, manifest_from_json, manifest_to_json
from dexport.runtime.onnx_scan import scan_onnx
from dexport.runtime.tensor_file import tensors_from_bytes
from tests.runtime.sample_bundle import LOOP, TABLES, complete_manifest, sample_files, write_sample

CASES = {"archive": 4500, "manifest": 2500, "onnx": 3000, "tensors": 3000, "folder": 600, "dxb": 800}
SECONDS_PER_CASE = 30  # a hang, not a slow machine
EXTRA_MEMORY_BYTES = 256 << 20

VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2,
    1 << 31,
    1 << 53,
    1 << 63,
    0.5,
    1e308,
    "",
    "..",
    "../x",
    "/",
    "a",
    "a\0",
    "a\n",
    "é",
    "\ud800",
]
VALUES += ["x" * 5000, "C:\\x", [], {}, [[]], [0] * 5000, {"a": 1}, {"": None}, "graphs/loop.onnx", "tensorrt", "0" * 64]
WORDS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]


def test_there_are_ten_thousand_cases() -> None:
    assert sum(CASES.values()) >= 10_000


@pytest.fixture(autouse=True)
def _bounds() -> Iterator[None]:
    """An allocation beyond the bound becomes a MemoryError, which no test here accepts; a hang ends in SIGALRM."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_MEMORY_BYTES, hard))
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _fuzz(kind: str, case: Callable[[Random], object]) -> int:
    """Runs all cases of a kind; returns how many were accepted."""
    accepted = 0
    for seed in range(CASES[kind]):
        signal.alarm(SECONDS_PER_CASE)
        try:
            case(Random(f"{kind} {seed}"))
            accepted += 1
        except DexportError as error:
            assert str(error).isprintable() and len(str(error)) < 2000, (kind, seed, str(error))
        except BaseException as error:
            raise AssertionError(f"case {seed} of {kind}") from error
    return accepted


def _damaged(data: bytes, random: Random) -> bytes:
    """One to four edits: bits and words overwritten, stretches cut out, doubled or moved, the end cut off."""
    result = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(result) + 1)
        length = random.choice([1, 2, 4, 8, random.randrange(1, 200)])
        edit = random.randrange(6)
        if edit == 0 and at < len(result):
            result[at] ^= 1 << random.randrange(8)
        elif edit == 1:
            width = random.choice([1, 2, 4, 8])
            result[at : at + width] = (random.choice(WORDS) % (1 << 8 * width)).to_bytes(width, "little")
        elif edit == 2:
            del result[at : at + length]
        elif edit == 3:
            result[at:at] = result[at : at + length]
        elif edit == 4:
            other = random.randrange(len(result) + 1)
            result[at : at + length] = result[other : other + length]
        elif random.random() < 0.3:
            del result[at:]
    return bytes(result)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON document."""
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from _places(node[key])


def _edited(document: Any, random: Random) -> bytes:
    """One to three values of a document replaced, removed, renamed or put elsewhere; sometimes its text damaged as well."""
    for _ in range(random.randint(1, 3)):
        container, key = random.choice(list(_places(document)))
        edit = random.randrange(4)
        if edit == 0:
            container[key] = copy.deepcopy(random.choice(VALUES))
        elif edit == 1:
            del container[key]
        elif edit == 2 and isinstance(container, dict):
            container[str(random.choice(VALUES))] = container.pop(key)
        elif edit == 3:
            owner, name = random.choice(list(_places(document)))
            container[key] = copy.deepcopy(owner[name])
        if not list(_places(document)):
            break
    data = json.dumps(document).encode()
    return _damaged(data, random) if random.random() < 0.2 else data


def test_damaged_archives(tmp_path: Path) -> None:
    valid = write_sample(tmp_path / "a.dxb").read_bytes()
    end = len(valid) - 22
    start = int.from_bytes(valid[end + 16 : end + 20], "little")
    headers = [at for at in range(start) if valid[at : at + 4] == b"PK\3\4"]

    def case(random: Random) -> None:
        where = random.random()
        if where < 0.6:  # the directory and the end record
            data = valid[:start] + _damaged(valid[start:], random)
        elif where < 0.9:  # a local header
            at = random.choice(headers)
            data = valid[:at] + _damaged(valid[at : at + 60], random)[:60].ljust(60, b"\0") + valid[at + 60 :]
        else:
            data = _damaged(valid, random)
        entries = entries_of_archive(io.BytesIO(data), len(data), "a.dxb")
        assert all(0 <= offset <= offset + size <= len(data) for _, offset, size in entries)

    assert 0 < _fuzz("archive", case) < CASES["archive"]


def test_hostile_manifests() -> None:
    valid = manifest_to_json(complete_manifest())

    def case(random: Random) -> None:
        data = _damaged(valid, random) if random.random() < 0.3 else _edited(json.loads(valid), random)
        manifest = manifest_from_json(data, MANIFEST_NAME)
        if random.random() < 0.1:
            assert manifest_from_json(manifest_to_json(manifest), MANIFEST_NAME) == manifest

    assert 0 < _fuzz("manifest", case) < CASES["manifest"]


def test_damaged_graphs() -> None:
    valid = sample_files()[LOOP]

    def case(random: Random) -> None:
        summary = scan_onnx(memoryview(_damaged(valid, random)), LOOP, sizes={"loop.bin": 24}, domains=ONNX_DOMAINS)
        assert summary.external <= {"loop.bin"} and {domain for domain, _ in summary.operators} <= ONNX_DOMAINS

    assert 0 < _fuzz("onnx", case) < CASES["onnx"]


def test_damaged_tensors() -> None:
    valid = sample_files()[TABLES]
    length = int.from_bytes(valid[:8], "little")

    def case(random: Random) -> None:
        if random.random() < 0.5:
            header = _edited(json.loads(valid[8 : 8 + length]), random)
            data = len(header).to_bytes(8, "little") + header + valid[8 + length :]
        else:
            data = _damaged(valid, random)
        tensors = tensors_from_bytes(np.frombuffer(data, np.uint8), TABLES)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= len(data)

    assert 0 < _fuzz("tensors", case) < CASES["tensors"]


def _replace(path: Path, data: bytes) -> None:
    """Not by truncating and writing, which some file systems answer with a flush to the disk."""
    path.unlink()
    path.write_bytes(data)


def _open_and_use(path: Path, random: Random) -> None:
    bundle = open_bundle(path, trust=True, verify=random.choice(["full", "sizes"]))
    for relative, entry in bundle.manifest.files.items():
        assert bundle.map(relative).nbytes == entry.bytes
    for program in bundle.manifest.programs:
        if program.tables is not None:
            bundle.tensors(program.tables)


def test_damaged_folders(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "folder")
    valid = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}

    def case(random: Random) -> None:
        """Half of the damaged files get a manifest that agrees with them, to come past the checksums."""
        relative = random.choice(sorted(valid))
        data = _damaged(valid[relative], random)
        manifest = json.loads(valid[MANIFEST_NAME])
        if relative == MANIFEST_NAME:
            data = _edited(manifest, random)
        elif random.random() < 0.5:
            manifest["files"][relative] = {"sha256": sha256(data).hexdigest(), "bytes": len(data)}
            _replace(path / MANIFEST_NAME, json.dumps(manifest).encode())
        _replace(path / relative, data)
        try:
            _open_and_use(path, random)
        finally:
            for name in (relative, MANIFEST_NAME):
                _replace(path / name, valid[name])

    assert 0 < _fuzz("folder", case) < CASES["folder"]


def test_damaged_files(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "a.dxb")
    valid = path.read_bytes()
    start = valid.rindex(b'{\n "schema"')

    def case(random: Random) -> None:
        data = valid[:start] + _damaged(valid[start:], random) if random.random() < 0.5 else _damaged(valid, random)
        _replace(path, data)
        _open_and_use(path, random)

    assert 0 <= _fuzz("dxb", case) < CASES["dxb"]
