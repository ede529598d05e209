import io
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dexport.errors import UserError
from dexport.runtime import archive
from dexport.runtime.archive import ALIGNMENT, MAX_FILES, entries_of_archive, list_archive, list_folder
from tests.runtime.sample_bundle import sample_files, write_sample

REPACK = "get the bundle again or rebuild it with a .dxb output"
END_BYTES, CENTRAL_BYTES = 22, 46


def _archive(
    *names: str, content: bytes = b"x" * 10, edit: Callable[[zipfile.ZipInfo], object] = lambda info: None, **options: int
) -> bytes:
    """A zip with aligned entries, as a stranger could make it with Python's zipfile."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as out:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.compress_type = out.compression
            padding = -(file.tell() + 30 + len(name.encode()) + 4) % ALIGNMENT
            info.extra = struct.pack("<2H", 0xD935, padding) + bytes(padding)
            out.writestr(info, content)
            info.extra = b""
            edit(info)
    return file.getvalue()


def _list(data: bytes) -> list[tuple[str, int, int]]:
    return entries_of_archive(io.BytesIO(data), len(data), "a.dxb")


def _patched(data: bytes, at: int, value: bytes) -> bytes:
    at %= len(data)
    return data[:at] + value + data[at + len(value) :]


def test_what_zipfile_writes_aligned_is_listed() -> None:
    assert _list(_archive("a", "b/c")) == [("a", ALIGNMENT, 10), ("b/c", 2 * ALIGNMENT, 10)]
    assert _list(_archive()) == []


def test_the_bundle_writer_agrees_with_zip_tools(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "a.dxb")
    extents = list_archive(path)
    with zipfile.ZipFile(path) as tool:
        assert tool.testzip() is None and tool.namelist()[-1] == "manifest.json"
        assert set(tool.namelist()) == set(extents)
    for name, content in sample_files().items():
        extent = extents[name]
        assert extent.offset % ALIGNMENT == 0 and path.read_bytes()[extent.offset : extent.offset + extent.bytes] == content


def test_an_archive_beyond_4_gib_is_listed(tmp_path: Path) -> None:
    """Made by hand around a hole, as zipfile would have to write 5 GiB."""
    big, path = 5 << 30, tmp_path / "big.dxb"

    def local(name: bytes, at: int) -> bytes:
        padding = -(at + 30 + len(name) + 4) % ALIGNMENT
        header = struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, len(name), padding + 4)
        return header + name + struct.pack("<2H", 0xD935, padding) + bytes(padding)

    def central(name: bytes, fields: tuple[int, int, int], large: bytes) -> bytes:
        stored, size, offset = fields
        header = struct.pack("<4s6H3I5H2I", b"PK\1\2", 45, 45, 0, 0, 0, 0, 0, stored, size, len(name), len(large), 0, 0, 0, 0, offset)
        return header + name + large

    with path.open("wb") as file:
        file.write(local(b"a", 0))
        second = file.tell() + big
        file.seek(second)
        file.write(local(b"b", second) + b"tail")
        start = file.tell()
        file.write(central(b"a", (0xFFFFFFFF, 0xFFFFFFFF, 0), struct.pack("<2H2Q", 1, 16, big, big)))
        file.write(central(b"b", (4, 4, 0xFFFFFFFF), struct.pack("<2HQ", 1, 8, second)))
        end = file.tell()
        file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, end - start, start))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, end, 1))
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2, 2, end - start, 0xFFFFFFFF, 0))
    extents = list_archive(path)
    assert (extents["a"].offset, extents["a"].bytes) == (ALIGNMENT, big)
    assert (extents["b"].offset, extents["b"].bytes) == (big + 2 * ALIGNMENT, 4)
    with zipfile.ZipFile(path) as tool:
        assert {info.filename: info.file_size for info in tool.infolist()} == {"a": big, "b": 4}


def _set_mode(mode: int) -> Callable[[zipfile.ZipInfo], object]:
    return lambda info: setattr(info, "external_attr", mode << 16)


def _set(name: str, value: object) -> Callable[[zipfile.ZipInfo], object]:
    return lambda info: setattr(info, name, value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a.dxb: expected a zip of at least 22 bytes, got 0 bytes"),
        (b"no zip at all, but long enough", "a.dxb: expected a zip's end record in the last 22 bytes, got something else: truncated"),
        (_archive("a")[:-1], "a.dxb: expected a zip's end record in the last 22 bytes, got something else: truncated, or not a .dxb"),
        (_archive("a") + b"x", "a.dxb: expected a zip's end record in the last 22 bytes"),
        (b"x" + _archive("a"), "a.dxb: expected the directory right before the end record"),
        (_archive("a", compression=zipfile.ZIP_DEFLATED), "a.dxb: a: expected an entry that is stored, got compression method 8"),
        (_archive("a", compression=zipfile.ZIP_LZMA), "a.dxb: a: expected an entry that is stored, got compression method 14"),
        (_archive("a", edit=_set("flag_bits", 1)), "a.dxb: a: expected no encryption and no data descriptor, got flags 0x1"),
        (_archive("a", edit=_set("file_size", 1 << 20)), "a.dxb: a: expected as many bytes as are stored, got 1048576 declared, 10 stored"),
        (_archive("a", edit=_set_mode(stat.S_IFLNK | 0o777)), "a.dxb: a: expected a regular file, got a symbolic link"),
        (_archive("a", edit=_set_mode(stat.S_IFIFO | 0o777)), "a.dxb: a: expected a regular file, got a pipe, socket or device"),
        (_archive("a", edit=_set_mode(stat.S_IFDIR | 0o777)), "a.dxb: a: expected a regular file, got a folder"),
        (_archive("a/"), "a.dxb: a/: expected a plain relative path .*, got 'a/'"),
        (_archive("../a"), "a.dxb: ../a: expected a plain relative path .*, got '../a'"),
        (_archive("/a"), "a.dxb: /a: expected a plain relative path"),
        (_archive("C:a"), "a.dxb: C:a: expected a plain relative path"),
        (_archive("a\\b"), r"a.dxb: a\\b: expected a plain relative path"),
        (_archive("é"), "a.dxb: é: expected a plain relative path"),
        (_archive("a", edit=_set("comment", b"x")), "a.dxb: expected a directory entry, got something else"),
        (_archive("a", edit=_set("extra", b"\1\0\0\0")), "a.dxb: a: expected 0 zip64 values, got 4 bytes of extra fields"),
        (_archive("a", edit=_set("header_offset", 1)), "a.dxb: expected the entry a at byte 0, after the one before it, got byte 1"),
        (_archive("a", edit=_set("header_offset", 1 << 40)), "a.dxb: expected the entry a at byte 0, .* got byte 1099511627776"),
        (
            _archive("a", "b", edit=_set("header_offset", 0)),
            "a.dxb: expected the entry b at byte 4106, after the one before it, got byte 0",
        ),
        (_patched(_archive("a"), 30, b"b"), "a.dxb: a: expected a local header that agrees with the directory, got another"),
        (_patched(_archive("a"), 8, b"\x08"), "a.dxb: a: expected a local header that agrees with the directory, got another"),
        (_patched(_archive("a"), 28, b"\0\0"), "a.dxb: a: expected data that starts at a multiple of 4096, got byte 31"),
        (_patched(_archive("a"), -END_BYTES + 8, b"\2\0\2\0"), "a.dxb: expected a directory of 2 entries, got fewer"),
        (_patched(_archive("a"), -END_BYTES + 8, b"\0\0\0\0"), "a.dxb: expected a directory of 0 entries, got bytes after the last"),
        (_patched(_archive("a"), -END_BYTES + 4, b"\1\0"), "a.dxb: expected one zip, not one split into parts, got part 1"),
        (_patched(_archive("a"), -END_BYTES + 8, b"\xff\xff\xff\xff"), "a.dxb: expected a zip64 locator before the end record"),
        (_patched(_archive("a"), -END_BYTES + 12, b"\xff" * 8), "a.dxb: expected a zip64 locator before the end record"),
        (b"\0" * ALIGNMENT + _archive(), "a.dxb: expected the directory right before the end record"),
    ],
)
def test_every_other_zip_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _list(data)
    assert "\n" not in str(caught.value)


def test_a_name_that_occurs_twice_is_refused() -> None:
    with pytest.warns(UserWarning, match=r"Duplicate name"):
        data = _archive("a", "a")
    with pytest.raises(UserError, match=f"a.dxb: a: expected one entry of that name, got two; {REPACK}"):
        _list(data)


def test_an_entry_that_reaches_into_the_directory_is_refused() -> None:
    data = _archive("a")
    sizes = len(data) - END_BYTES - CENTRAL_BYTES - len("a") + 20
    with pytest.raises(UserError, match=r"a.dxb: expected a to end before the directory at byte 4106, got 1048576 bytes from byte 4096"):
        _list(_patched(data, sizes, struct.pack("<2I", 1 << 20, 1 << 20)))


def test_bytes_that_belong_to_no_entry_are_refused() -> None:
    data = _archive("a")
    sizes = len(data) - END_BYTES - CENTRAL_BYTES - len("a") + 20
    with pytest.raises(UserError, match=r"a.dxb: expected the directory at byte 4100, after the last entry, got byte 4106"):
        _list(_patched(data, sizes, struct.pack("<2I", 4, 4)))


def test_too_many_entries_are_refused_before_any_is_read() -> None:
    data = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, MAX_FILES + 1, MAX_FILES + 1, 0, 0, 0)
    with pytest.raises(UserError, match=f"a.dxb: expected at most {MAX_FILES} files, got more"):
        _list(data)


def test_a_folder_is_listed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"123")
    extents = list_folder(tmp_path)
    assert {name: extent.bytes for name, extent in extents.items()} == {"a/b": 3}


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _linked_folder(path: Path) -> None:
    path.symlink_to("/etc", target_is_directory=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_link, "x: expected a regular file, got a symbolic link; copy the bundle with its files in place of links"),
        (_linked_folder, "x: expected a regular file, got a symbolic link"),
        (os.mkfifo, "x: expected a regular file, got a pipe, socket or device"),
    ],
)
def test_only_regular_files_may_be_in_a_folder(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "x")
    with pytest.raises(UserError, match=message):
        list_folder(tmp_path)


def test_odd_names_in_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a\nb").touch()
    with pytest.raises(UserError, match=r"a\\nb: expected a plain relative path .*, got 'a\\nb'"):
        list_folder(tmp_path)


@pytest.mark.parametrize("kind", [Path.touch, Path.mkdir])
def test_a_folder_with_too_much_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[Path], object]) -> None:
    monkeypatch.setattr(archive, "MAX_FILES", 3)
    monkeypatch.setattr(archive, "_MAX_FOLDERS", 3)
    for index in range(4):
        kind(tmp_path / f"d{index}")
    with pytest.raises(UserError, match=r"expected at most 3 files, got more"):
        list_folder(tmp_path)
