import fcntl
import os
import re
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dexport.errors import Failure, UserError
from dexport.runtime.bundle import open_bundle
from dexport.runtime.bundle_writer import BundleWriter
from dexport.runtime.manifest import MANIFEST_NAME, Component, Manifest, Model, Variant
from tests.runtime.small_disk import run_on_small_disk

FORMS = pytest.mark.parametrize("name", ["folder", "archive.dxb"])


def _manifest(target: str = "cpu") -> Manifest:
    variant = Variant(size=None, artifact="engines/loop.xml", format="openvino", files=("engines/loop.xml",))
    loop = Component(inputs={}, outputs={}, variants=(variant,), parameters=1, weight_bytes=4, precision="fp32")
    return Manifest(
        dexport="0.1.0",
        created="2026-01-31T12:00:00Z",
        model=Model(class_name="PixArtAlphaPipeline", name="shapes", sha256="0" * 64),
        family="pixart",
        target=target,
        backend="openvino",
        precision="fp32",
        config={},
        components={"loop": loop},
        sizes=((64, 64),),
    )


def _fill(writer: BundleWriter) -> None:
    (writer.directory / "engines").mkdir()
    (writer.directory / "engines" / "loop.xml").write_text("<net/>")


def _write(out: Path, target: str = "cpu") -> Path:
    with BundleWriter(out) as writer:
        _fill(writer)
        return writer.finish(_manifest(target))


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@FORMS
def test_the_bundle_appears_whole_and_nothing_else(tmp_path: Path, name: str) -> None:
    with BundleWriter(tmp_path / name) as writer:
        _fill(writer)
        assert not (tmp_path / name).exists()
        assert writer.finish(_manifest()) == tmp_path / name
    assert _names(tmp_path) == [name]
    bundle = open_bundle(tmp_path / name)
    assert set(bundle.manifest.files) == {"engines/loop.xml"} and bundle.manifest.target == "cpu"


def test_the_same_contents_make_the_same_archive(tmp_path: Path) -> None:
    assert _write(tmp_path / "a.dxb").read_bytes() == _write(tmp_path / "b.dxb").read_bytes()


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    assert open_bundle(_write(tmp_path / "new" / "er" / "a.dxb")).manifest.target == "cpu"


@FORMS
def test_others_can_read_what_they_could_before(tmp_path: Path, name: str) -> None:
    _write(tmp_path / name)
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "file").touch()
    like = tmp_path / "reference" if name == "folder" else tmp_path / "reference" / "file"
    assert (tmp_path / name).stat().st_mode == like.stat().st_mode


@FORMS
def test_a_bundle_is_replaced_by_the_next(tmp_path: Path, name: str) -> None:
    _write(tmp_path / name, "cpu")
    with BundleWriter(tmp_path / name) as writer:
        _fill(writer)
        assert open_bundle(tmp_path / name).manifest.target == "cpu"
        writer.finish(_manifest("rtx-4090"))
        assert open_bundle(tmp_path / name).manifest.target == "rtx-4090"
    assert _names(tmp_path) == [name]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    assert open_bundle(_write(tmp_path / "bundle")).manifest.target == "cpu"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(_write(tmp_path / "bundle"))
    _write(tmp_path / "link", "rtx-4090")
    assert (tmp_path / "link").is_symlink() and open_bundle(tmp_path / "bundle").manifest.target == "rtx-4090"


# What is not touched


def _file(path: Path) -> None:
    path.write_text("mine")


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "mine").touch()


def _bundle_with_notes(path: Path) -> None:
    (_write(path) / "notes.txt").touch()


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("mine", "mine")


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.dxb", _file, "a.dxb: expected nothing there, or a bundle to replace, got something else .*zip.*; remove it or choose another"),
        ("a.dxb", _zip, "a.dxb: expected nothing there, or a bundle to replace, got something else"),
        ("a.dxb", _folder, "a.dxb: expected a file, as the name ends in .dxb, got a folder; remove it or choose another name with -o"),
        ("a.dxb", Path.mkdir, "a.dxb: expected a file, as the name ends in .dxb, got a folder"),
        ("a", _file, "a: expected a folder, as the name does not end in .dxb, got a file; remove it or choose another name with -o"),
        ("a", _folder, "a: expected nothing there, or a bundle to replace, got something else .*a folder without"),
        ("a", _bundle_with_notes, "a: expected nothing there, or a bundle to replace, got something else .*notes.txt"),
    ],
)
def test_what_is_no_bundle_is_not_replaced(tmp_path: Path, name: str, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        BundleWriter(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before and caught.value.exit_code == 2


@FORMS
def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"expected nothing there, or a bundle to replace"), BundleWriter(tmp_path / name) as writer:
        _fill(writer)
        (_file if name.endswith("dxb") else _folder)(tmp_path / name)
        writer.finish(_manifest())
    assert (tmp_path / name).read_text() == "mine" if name.endswith("dxb") else _names(tmp_path / name) == ["mine"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: expected a folder to write to, got File exists; check the permissions or write somewhere"):
        BundleWriter(tmp_path / "file" / "a.dxb")


# What goes wrong while writing


@FORMS
def test_an_error_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(RuntimeError, match=r"compiler"), BundleWriter(tmp_path / name) as writer:
        _fill(writer)
        raise RuntimeError("the compiler gave up")
    assert _names(tmp_path) == []


@FORMS
def test_an_error_leaves_the_old_bundle(tmp_path: Path, name: str) -> None:
    _write(tmp_path / name)
    with pytest.raises(KeyboardInterrupt), BundleWriter(tmp_path / name) as writer:
        _fill(writer)
        raise KeyboardInterrupt
    assert _names(tmp_path) == [name] and open_bundle(tmp_path / name).manifest.target == "cpu"


@FORMS
def test_a_bundle_that_could_not_be_read_is_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"expected 'engines/loop.xml' listed under files"), BundleWriter(tmp_path / name) as writer:
        writer.finish(_manifest())
    with pytest.raises(UserError, match=r"link: expected a regular file, got a symbolic link"), BundleWriter(tmp_path / name) as writer:
        _fill(writer)
        (writer.directory / "link").symlink_to("/etc/passwd")
        writer.finish(_manifest())
    assert _names(tmp_path) == []


def test_a_manifest_of_someone_else_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest.json"), BundleWriter(tmp_path / "a") as writer:
        _fill(writer)
        (writer.directory / MANIFEST_NAME).write_text("{}")
        writer.finish(_manifest())
    assert _names(tmp_path) == []


def test_too_little_space_is_found_before_the_work(tmp_path: Path) -> None:
    message = rf"a.dxb: expected {1 << 60} bytes free, got [0-9]+; free some space or write to another disk with -o"
    with pytest.raises(Failure, match=message) as caught:
        BundleWriter(tmp_path / "a.dxb", needed_bytes=1 << 60)
    assert _names(tmp_path) == [] and caught.value.exit_code == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, the disk that is always full")
@FORMS
def test_a_full_disk_leaves_nothing(tmp_path: Path, name: str) -> None:
    message = r"expected space for [0-9]+ bytes or more, got [0-9]+ bytes free after writing [0-9]+; free some space or write to another"
    with pytest.raises(Failure, match=message), BundleWriter(tmp_path / name) as writer:
        _fill(writer)
        Path("/dev/full").write_text("weights")
    assert _names(tmp_path) == []


_FILL_THE_DISK = """
    import sys
    from pathlib import Path
    from dexport.errors import Failure
    from dexport.runtime.bundle_writer import BundleWriter
    from tests.runtime.test_bundle_writer import _fill, _manifest

    def compile_weights(path, size):
        try:
            path.write_bytes(bytes(size))
        except OSError:
            if sys.argv[3] == "compiler":
                raise RuntimeError("could not save the model")
            raise

    try:
        with BundleWriter(Path(sys.argv[1])) as writer:
            _fill(writer)
            compile_weights(writer.directory / "weights.bin", int(sys.argv[2]) << 10)
            writer.finish(_manifest())
    except Failure as failure:
        print(failure)
    print([path.name for path in Path.cwd().iterdir()])
"""

_SPACE = r"expected space for [0-9]+ bytes or more, got [0-9]+ bytes free after writing [0-9]+"


@pytest.mark.parametrize(
    ("name", "kilobytes", "who", "message"),
    [
        ("folder", 2000, "we", _SPACE),
        ("archive.dxb", 2000, "we", _SPACE),
        ("archive.dxb", 2000, "compiler", _SPACE),
        ("archive.dxb", 600, "we", r"expected 62[0-9]{4} bytes free to pack the largest file, got [0-9]+"),
    ],
)
def test_a_really_full_disk(tmp_path: Path, name: str, kilobytes: int, who: str, message: str) -> None:
    output = run_on_small_disk(tmp_path, textwrap.dedent(_FILL_THE_DISK), name, str(kilobytes), who)
    assert re.fullmatch(rf".*/{name}: {message}; free some space or write to another disk with -o\n\[\]\n", output)


_KILLED = """
    import os, signal, sys
    from pathlib import Path
    from dexport.runtime.bundle_writer import BundleWriter

    with BundleWriter(Path(sys.argv[1])) as writer:
        (writer.directory / "weights.bin").write_bytes(bytes(1000))
        os.kill(os.getpid(), signal.SIGKILL)
"""


@FORMS
def test_a_killed_run_leaves_nothing_visible_and_the_next_cleans_up(tmp_path: Path, name: str) -> None:
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(_KILLED), str(tmp_path / name)], check=False)
    assert run.returncode == -signal.SIGKILL
    (left,) = _names(tmp_path)
    assert left.startswith(f".{name}.") and left.endswith(".tmp")
    _write(tmp_path / name)
    assert _names(tmp_path) == [name]


def test_a_run_that_is_still_writing_is_left_alone(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "a.dxb") as first:
        _fill(first)
        _write(tmp_path / "a.dxb", "rtx-4090")
        assert first.directory.exists()
        first.finish(_manifest("cpu"))
    assert open_bundle(tmp_path / "a.dxb").manifest.target == "cpu" and _names(tmp_path) == ["a.dxb"]


def test_only_folders_of_killed_runs_for_this_name_are_removed(tmp_path: Path) -> None:
    for name in (".a.dxb.1.x_9.tmp", ".b.dxb.1.x_9.tmp", ".a.dxb.backup.tmp"):
        (tmp_path / name).mkdir()
    _write(tmp_path / "a.dxb")
    assert _names(tmp_path) == [".a.dxb.backup.tmp", ".b.dxb.1.x_9.tmp", "a.dxb"]


def test_a_folder_of_a_live_run_is_known_by_its_lock(tmp_path: Path) -> None:
    stale = tmp_path / ".a.dxb.1.x_9.tmp"
    stale.mkdir()
    descriptor = os.open(stale, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    _write(tmp_path / "a.dxb")
    os.close(descriptor)
    assert _names(tmp_path) == [stale.name, "a.dxb"]
