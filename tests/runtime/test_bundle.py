import concurrent.futures
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dexport.errors import Failure, UserError
from dexport.runtime.bundle import Bundle, open_bundle
from dexport.runtime.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES
from dexport.runtime.trust import default_trust_file, trust
from tests.runtime.sample_bundle import (
    LOOP,
    PLAN,
    TABLES,
    WEIGHTS,
    edited_manifest,
    onnx_with_external_weights,
    sample_files,
    write_sample,
)
from tests.runtime.small_disk import run_on_small_disk

REBUILD = "get the bundle again or rebuild it"
FORMS = pytest.mark.parametrize("name", ["folder", "archive.dxb"])


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("DEXPORT_CACHE_DIR", str(tmp_path / "cache"))


@FORMS
def test_every_file_comes_back(tmp_path: Path, name: str) -> None:
    bundle = open_bundle(write_sample(tmp_path / name), trust=True)
    for relative, content in sample_files().items():
        assert bundle.map(relative).tobytes() == content == bundle.read_bytes(relative)
        assert bundle.file(relative).read_bytes() == content
    assert bundle.tensors(TABLES)["row"].tolist() == [0, 1, 2, 3]


def test_both_forms_are_the_same_bundle(tmp_path: Path) -> None:
    bundles = [open_bundle(write_sample(tmp_path / name)) for name in ("folder", "archive.dxb")]
    assert bundles[0].manifest.digest() == bundles[1].manifest.digest()


@FORMS
def test_a_mapping_is_read_only_or_private(tmp_path: Path, name: str) -> None:
    bundle = open_bundle(write_sample(tmp_path / name))
    assert not bundle.map(WEIGHTS).flags.writeable
    private = bundle.map(WEIGHTS, copy_on_write=True)
    private[:] = 255
    assert bundle.map(WEIGHTS).tobytes() == sample_files()[WEIGHTS] and private[0] == 255


@FORMS
def test_a_mapping_outlives_the_bundle(tmp_path: Path, name: str) -> None:
    path = write_sample(tmp_path / name)
    mapped = open_bundle(path).map(WEIGHTS)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert mapped.tobytes() == sample_files()[WEIGHTS]


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    open_bundle(write_sample(tmp_path / "folder"), progress=lambda *call: calls.append(call))
    total = sum(map(len, sample_files().values()))
    assert calls[-1][:2] == (total, total) and [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
    assert {name for _, _, name in calls} == {name for name, content in sample_files().items() if content}


# What is wrong with the whole


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no.dxb: expected a bundle, got nothing there; check the path or make one with `dexport build`"):
        open_bundle(tmp_path / "no.dxb")


def test_a_model_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match=r"expected a bundle, got a diffusers model; build it first: dexport build .* --target cpu"):
        open_bundle(tmp_path)


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a bundle with manifest.json, got a folder without; check the path"):
        open_bundle(tmp_path)


def test_an_archive_without_a_manifest(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.dxb", "w"):
        pass
    with pytest.raises(UserError, match=f"a.dxb: expected a bundle with manifest.json, got an archive without; {REBUILD}"):
        open_bundle(tmp_path / "a.dxb")


def test_neither_file_nor_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.dxb")
    with pytest.raises(UserError, match=r"a.dxb: expected a folder or a .dxb file, got something else"):
        open_bundle(tmp_path / "a.dxb")


# Hostile or damaged contents, in a folder


def _folder(tmp_path: Path, edit: Callable[[dict[str, Any]], object] = lambda document: None) -> Path:
    path = write_sample(tmp_path / "bundle")
    (path / MANIFEST_NAME).write_bytes(edited_manifest(edit))
    return path


def _refused(path: Path, message: str, error: type[UserError] | type[Failure] = UserError) -> None:
    for verify in ("full", "sizes"):
        with pytest.raises(error, match=message) as caught:
            open_bundle(path, verify=verify)
        assert "\n" not in str(caught.value)


def test_bad_json(tmp_path: Path) -> None:
    path = _folder(tmp_path)
    (path / MANIFEST_NAME).write_text('{"schema": 1')
    _refused(path, f"bundle: manifest.json: expected well-formed JSON in UTF-8, got Expecting .*; {REBUILD}")


def test_deep_json(tmp_path: Path) -> None:
    path = _folder(tmp_path)
    (path / MANIFEST_NAME).write_text("[" * 1_000_000)
    _refused(path, f"bundle: manifest.json: expected well-formed JSON in UTF-8, got nesting too deep; {REBUILD}")


def test_a_huge_manifest_is_not_read(tmp_path: Path) -> None:
    path = _folder(tmp_path)
    os.truncate(path / MANIFEST_NAME, 1 << 40)
    _refused(path, f"bundle: manifest.json: expected at most {MAX_MANIFEST_BYTES} bytes, got {1 << 40}; {REBUILD}")


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    path = _folder(tmp_path)
    (path / MANIFEST_NAME).write_bytes(pickle.dumps({"schema": 1}))
    _refused(path, "bundle: manifest.json: expected well-formed JSON in UTF-8")


def test_a_newer_schema(tmp_path: Path) -> None:
    message = "manifest.json: expected bundle schema 1 or older, got schema 2, written by dexport 3.0; install dexport 3.0 or newer to read"
    _refused(_folder(tmp_path, lambda document: document.update(schema=2, dexport="3.0")), message)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "graphs/../../outside", "C:\\x", "..\\x"])
def test_a_path_out_of_the_bundle(tmp_path: Path, name: str) -> None:
    path = _folder(tmp_path, lambda document: document["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    _refused(path, "bundle: manifest.json: files: expected a plain relative path .*, got '.*'; get the bundle again")


def test_a_link_out_of_the_bundle(tmp_path: Path) -> None:
    path = _folder(tmp_path)
    (path / WEIGHTS).rename(tmp_path / "outside.bin")
    (path / WEIGHTS).symlink_to(tmp_path / "outside.bin")
    _refused(path, f"bundle: {WEIGHTS}: expected a regular file, got a symbolic link; copy the bundle with its files in place of links")


def test_a_missing_file(tmp_path: Path) -> None:
    path = _folder(tmp_path)
    (path / WEIGHTS).unlink()
    _refused(path, f"bundle: {WEIGHTS}: expected a file of 24 bytes, got no such file; {REBUILD}")


def test_an_extra_file(tmp_path: Path) -> None:
    path = _folder(tmp_path)
    (path / "notes.txt").touch()
    _refused(path, "bundle: notes.txt: expected only the files that manifest.json lists, got one more; delete it or get the bundle again")


def test_a_truncated_file(tmp_path: Path) -> None:
    path = _folder(tmp_path)
    os.truncate(path / WEIGHTS, 20)
    _refused(path, f"bundle: {WEIGHTS}: expected 24 bytes, got 20; {REBUILD}")


def test_a_huge_declared_size(tmp_path: Path) -> None:
    path = _folder(tmp_path, lambda document: document["files"][WEIGHTS].update(bytes=1 << 50))
    _refused(path, f"bundle: {WEIGHTS}: expected {1 << 50} bytes, got 24; {REBUILD}")


@FORMS
def test_a_wrong_checksum(tmp_path: Path, name: str) -> None:
    path = write_sample(tmp_path / name)
    file = path / WEIGHTS if path.is_dir() else path
    content = file.read_bytes()
    at = content.index(sample_files()[WEIGHTS])
    file.write_bytes(content[:at] + b"\1" + content[at + 1 :])
    with pytest.raises(UserError, match=f"{name}: {WEIGHTS}: expected sha256 [0-9a-f]{{64}}, got [0-9a-f]{{64}}; {REBUILD}"):
        open_bundle(path)


def test_a_graph_that_reads_another_file(tmp_path: Path) -> None:
    path = _folder(tmp_path)
    evil = onnx_with_external_weights(location="../x.bin")
    (path / LOOP).write_bytes(evil)
    (path / MANIFEST_NAME).write_bytes(edited_manifest(lambda document: document["files"][LOOP].update(bytes=len(evil))))
    with pytest.raises(UserError, match=f"bundle: {LOOP}: external data: expected a plain relative path .*, got '../x.bin'"):
        open_bundle(path, verify="sizes")


def test_an_archive_that_is_compressed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.dxb", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("bomb.bin", bytes(1 << 20))
    _refused(tmp_path / "a.dxb", "a.dxb: bomb.bin: expected an entry that is stored, got compression method 8; get the bundle again")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = _folder(tmp_path)
    (path / WEIGHTS).chmod(0)
    with pytest.raises(UserError, match=r"expected a file that can be read, got Permission denied; check permissions"):
        open_bundle(path)


# What is asked of an opened bundle


@FORMS
@pytest.mark.parametrize("access", [Bundle.map, Bundle.read_bytes, Bundle.file, Bundle.tensors])
def test_a_file_that_the_bundle_lacks(tmp_path: Path, name: str, access: Callable[[Bundle, str], object]) -> None:
    bundle = open_bundle(write_sample(tmp_path / name))
    with pytest.raises(UserError, match=rf"{name}: \.\./x\\n: expected a file of the bundle, got none of that name"):
        access(bundle, "../x\n")


def test_a_large_file_is_not_read_into_memory(tmp_path: Path) -> None:
    bundle = open_bundle(write_sample(tmp_path / "folder"))
    with pytest.raises(UserError, match=f"folder: {WEIGHTS}: expected at most 23 bytes, got 24"):
        bundle.read_bytes(WEIGHTS, max_bytes=23)


@FORMS
def test_a_bundle_that_is_replaced_while_it_is_open(tmp_path: Path, name: str) -> None:
    bundle = open_bundle(write_sample(tmp_path / name))
    write_sample(tmp_path / name)
    with pytest.raises(
        Failure, match=r"expected the file as it was when the bundle was opened, got another file, .*; open the bundle again"
    ):
        bundle.map(WEIGHTS)


def test_a_bundle_that_disappears_while_it_is_open(tmp_path: Path) -> None:
    bundle = open_bundle(write_sample(tmp_path / "folder"))
    shutil.rmtree(tmp_path / "folder")
    with pytest.raises(Failure, match=r"expected the file as it was when the bundle was opened, got nothing there; open the bundle again"):
        bundle.read_bytes(WEIGHTS)


# Machine code


@FORMS
@pytest.mark.parametrize("access", [Bundle.map, Bundle.read_bytes, Bundle.file])
def test_machine_code_from_elsewhere_is_not_handed_out(tmp_path: Path, name: str, access: Callable[[Bundle, str], object]) -> None:
    path = write_sample(tmp_path / name)
    message = (
        f"{name}: {PLAN}: expected machine code that was built on this machine or that you trust, got code from elsewhere; "
        r"build it here with `dexport finalize`, or pass --trust \(trust=True\) if you know who made it"
    )
    bundle = open_bundle(path)
    with pytest.raises(UserError, match=message):
        access(bundle, PLAN)
    access(open_bundle(path, trust=True), PLAN)
    trust({bundle.manifest.files[PLAN].sha256: PLAN}, default_trust_file())
    access(bundle, PLAN)


def test_trusted_machine_code_is_compared_even_when_the_rest_is_not(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "folder")
    trust({open_bundle(path).manifest.files[PLAN].sha256: PLAN}, default_trust_file())
    (path / PLAN).write_bytes(b"machine kode")
    with pytest.raises(UserError, match=f"folder: {PLAN}: expected sha256"):
        open_bundle(path, verify="sizes").map(PLAN)


# Unpacking a .dxb


def test_unpacking_brings_what_belongs_together_and_no_more(tmp_path: Path) -> None:
    bundle = open_bundle(write_sample(tmp_path / "a.dxb"))
    file = bundle.file(LOOP)
    assert file == tmp_path / "cache" / "bundles" / bundle.manifest.digest() / LOOP
    assert sorted(path.name for path in file.parents[1].rglob("*") if path.is_file()) == ["loop.bin", "loop.onnx"]
    written = file.stat().st_mtime_ns
    assert open_bundle(tmp_path / "a.dxb").file(LOOP) == file and file.stat().st_mtime_ns == written


def test_a_file_that_was_deleted_from_the_cache_or_cut_is_unpacked_again(tmp_path: Path) -> None:
    bundle = open_bundle(write_sample(tmp_path / "a.dxb"))
    file = bundle.file(LOOP)
    file.unlink()
    os.truncate(file.with_name("loop.bin"), 3)
    assert bundle.file(LOOP).read_bytes() == sample_files()[LOOP]
    assert file.with_name("loop.bin").read_bytes() == sample_files()[WEIGHTS]


def test_what_a_killed_process_left_in_the_cache_goes_after_a_day(tmp_path: Path) -> None:
    bundle = open_bundle(write_sample(tmp_path / "a.dxb"))
    folder = tmp_path / "cache" / "bundles" / bundle.manifest.digest() / "graphs"
    folder.mkdir(parents=True)
    old, new = folder / ".loop.bin.1.part", folder / ".loop.bin.2.part"
    for part in (old, new):
        part.touch()
    os.utime(old, (0, 0))
    bundle.file(LOOP)
    assert not old.exists() and new.exists()


def test_a_wrong_checksum_is_found_while_unpacking(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "a.dxb")
    content = path.read_bytes()
    at = content.index(sample_files()[WEIGHTS])
    path.write_bytes(content[:at] + b"\1" + content[at + 1 :])
    bundle = open_bundle(path, verify="sizes")
    with pytest.raises(UserError, match=f"a.dxb: {WEIGHTS}: expected sha256"):
        bundle.file(WEIGHTS)
    assert [item for item in (tmp_path / "cache").rglob("*") if item.is_file() and item.name != "loop.onnx"] == []


def test_many_may_unpack_at_once(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "a.dxb")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda _: open_bundle(path).file(LOOP).read_bytes(), range(24)))
    assert set(files) == {sample_files()[LOOP]}
    assert list((tmp_path / "cache").rglob("*.part")) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    bundle = open_bundle(write_sample(tmp_path / "a.dxb"))
    (tmp_path / "cache").touch()
    message = "cache.*: expected room to unpack 24 bytes of graphs/loop.bin, got Not a directory; free some space or set DEXPORT_CACHE_DIR"
    with pytest.raises(Failure, match=message):
        bundle.file(LOOP)


def test_a_full_disk_while_unpacking(tmp_path: Path) -> None:
    write_sample(tmp_path / "a.dxb", weights_bytes=2 << 20)
    (tmp_path / "disk").mkdir()
    code = """
import os, sys
from dexport.errors import Failure
from dexport.runtime.bundle import open_bundle
os.environ["DEXPORT_CACHE_DIR"] = os.getcwd()
try:
    open_bundle(sys.argv[1]).file("weights.bin")
except Failure as failure:
    print(failure)
print([name for _, _, names in os.walk(".") for name in names])
"""
    output = run_on_small_disk(tmp_path / "disk", code, str(tmp_path / "a.dxb"))
    message = r"/bundles/[0-9a-f]{64}: expected room to unpack 2097152 bytes of weights.bin, got [0-9]+ bytes free; free some space or set"
    assert re.search(message, output) and output.endswith("\n[]\n")


# Memory

_MEASURE = """
import sys
from dexport.runtime.bundle import open_bundle

bundle = open_bundle(sys.argv[1])
maps = [bundle.map("weights.bin"), bundle.map("weights.bin", copy_on_write=True)]
assert sum(int(mapped[::4096].sum()) for mapped in maps) == 0  # every page was touched
with open("/proc/self/smaps_rollup") as file:
    print(max(int(line.split()[1]) * 1024 for line in file if line.startswith(("Private_Dirty:", "Anonymous:"))))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc/self/smaps_rollup of Linux")
@FORMS
def test_a_400_mb_bundle_takes_little_private_memory(tmp_path: Path, name: str) -> None:
    size = 400 << 20
    write_sample(tmp_path / name, weights_bytes=size)
    run = subprocess.run([sys.executable, "-c", _MEASURE, str(tmp_path / name)], capture_output=True, text=True, check=True)
    print(f"{name}: {int(run.stdout) / 2**20:.1f} MiB private, imports included, for {size >> 20} MiB of weights")
    assert int(run.stdout) <= 32 << 20


def test_the_reader_needs_neither_torch_nor_the_exporter() -> None:
    heavy = ("torch", "onnx", "dexport.exporter")
    code = f"import sys, dexport.runtime.bundle; print([name for name in sys.modules if name.startswith({heavy})])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_the_manifest_is_the_file(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "folder")
    assert json.loads((path / MANIFEST_NAME).read_bytes())["target"] == open_bundle(path).manifest.target
    assert np.frombuffer(open_bundle(path).map(WEIGHTS), np.float32).tolist() == [0, 1, 2, 3, 4, 5]
