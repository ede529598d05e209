"""Where the files of a bundle lie: in a folder, or as stretches of one `.dxb` archive. Both become {path: Extent}.

A `.dxb` is a zip of a strict kind, so that weights can be mapped straight out of it and no two readers can see different
contents: entries are stored, not compressed, start at multiples of 4096 bytes, follow each other without a gap, and
nothing stands before the first or after the end record. Zip64 is read; encryption, links, comments, data descriptors and
split archives are refused. Layout: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory),
4.3.14 to 4.3.16 (end records), 4.5.3 (zip64 field).
"""

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dexport.errors import UserError
from dexport.runtime.manifest import check_path
from dexport.runtime.strict_json import shown

ALIGNMENT = 4096  # bytes: the page size of the devices; larger pages are handled when mapping
MAX_FILES = 4097  # 4096 in the manifest and the manifest itself
_MAX_FOLDERS = 4096
_MAX_DIRECTORY_BYTES = 2 << 20
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_UTF8_NAME_FLAG = 0x800
_IN_ZIP64 = 0xFFFFFFFF
_REPACK = "get the bundle again or rebuild it with a .dxb output"


@dataclass(frozen=True)
class Extent:
    """A file's bytes: `bytes` of them from `offset` in `file`.

    `identity` is (device, inode, size, modification time in ns) of `file` when it was listed.
    """

    file: Path
    offset: int
    bytes: int
    identity: tuple[int, int, int, int]


@dataclass(frozen=True)
class _Entry:
    name: str
    header: int  # offset of the local header
    bytes: int


def identity_of(status: os.stat_result) -> tuple[int, int, int, int]:
    """What changes when a file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def list_folder(root: Path) -> dict[str, Extent]:
    """Lists a bundle that is a folder.

    Raises:
        UserError: a link, pipe or device is inside, a name that no bundle has, or more files than one may have.
    """
    extents: dict[str, Extent] = {}
    folders = [root]
    for folder in folders:  # grows while it is walked
        with os.scandir(folder) as entries:
            for entry in entries:
                path = Path(entry.path)
                where = f"{root}: {shown(path.relative_to(root).as_posix())}"
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    folders.append(path)
                elif stat.S_ISREG(status.st_mode):
                    relative = check_path(path.relative_to(root).as_posix(), where)
                    extents[relative] = Extent(path, 0, status.st_size, identity_of(status))
                else:
                    raise _kind_error(where, status.st_mode)
                if len(extents) > MAX_FILES or len(folders) > _MAX_FOLDERS:
                    raise _too_many(root)
    return extents


def list_archive(path: Path) -> dict[str, Extent]:
    """Lists a bundle that is a `.dxb`; reads only its directory and the headers of its entries.

    Raises:
        UserError: it is not a zip of the kind described above.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        return {
            name: Extent(path, offset, size, identity_of(status))
            for name, offset, size in entries_of_archive(file, status.st_size, str(path))
        }


def entries_of_archive(file: BinaryIO, size: int, where: str) -> list[tuple[str, int, int]]:
    """Names, offsets of the data and sizes in bytes of all entries of an archive of `size` bytes."""
    start, directory_bytes, count = _find_directory(file, size, where)
    if count > MAX_FILES or directory_bytes > _MAX_DIRECTORY_BYTES:
        raise _too_many(where)
    directory = _read(file, start, directory_bytes, where)
    result: dict[str, tuple[str, int, int]] = {}
    end = 0
    for entry in sorted(_parse_directory(directory, count, where), key=lambda entry: entry.header):
        if entry.name in result:
            raise UserError(f"{where}: {entry.name}", expected="one entry of that name", got="two", fix=_REPACK)
        if entry.header != end:
            raise _malformed(where, f"the entry {entry.name} at byte {end}, after the one before it", f"byte {entry.header}")
        data = _data_offset(file, entry, where)
        end = data + entry.bytes
        if end > start:
            raise _malformed(where, f"{entry.name} to end before the directory at byte {start}", f"{entry.bytes} bytes from byte {data}")
        result[entry.name] = entry.name, data, entry.bytes
    if end != start:
        raise _malformed(where, f"the directory at byte {end}, after the last entry", f"byte {start}")
    return list(result.values())


def _find_directory(file: BinaryIO, size: int, where: str) -> tuple[int, int, int]:
    """Offset, bytes and number of entries of the central directory."""
    end_at = size - _END.size
    if end_at < 0:
        raise _malformed(where, f"a zip of at least {_END.size} bytes", f"{size} bytes")
    magic, disk, first_disk, on_disk, count, length, start, comment = _END.unpack(_read(file, end_at, _END.size, where))
    if magic != b"PK\5\6" or comment:
        raise _malformed(where, "a zip's end record in the last 22 bytes", "something else: truncated, or not a .dxb")
    if count == 0xFFFF or _IN_ZIP64 in (length, start):
        locator_at = end_at - _LOCATOR64.size
        end_at = locator_at - _END64.size
        magic, disk, end64_at, disks = _LOCATOR64.unpack(_read(file, locator_at, _LOCATOR64.size, where))
        if magic != b"PK\6\7" or end64_at != end_at or disks > 1:
            raise _malformed(where, "a zip64 locator before the end record", "something else")
        magic, length64, _, _, disk, first_disk, on_disk, count, length, start = _END64.unpack(_read(file, end_at, _END64.size, where))
        if magic != b"PK\6\6" or length64 != _END64.size - 12:
            raise _malformed(where, "a zip64 end record before its locator", "something else")
    if disk or first_disk or on_disk != count:
        raise _malformed(where, "one zip, not one split into parts", f"part {disk}")
    if start + length != end_at:
        raise _malformed(where, "the directory right before the end record", f"{length} bytes from byte {start}")
    return start, length, count


def _parse_directory(directory: bytes, count: int, where: str) -> Iterator[_Entry]:
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(directory):
            raise _malformed(where, f"a directory of {count} entries", "fewer")
        fields = _CENTRAL.unpack_from(directory, at)
        magic, made_by, _, flags, method, _, _, _, stored, size, name_bytes, extra_bytes, comment_bytes, _, _, mode, header = fields
        end = at + _CENTRAL.size + name_bytes + extra_bytes
        if magic != b"PK\1\2" or comment_bytes or end > len(directory):
            raise _malformed(where, "a directory entry", "something else")
        name = _name(directory[at + _CENTRAL.size :][:name_bytes], where)
        if method != 0:
            raise _malformed(f"{where}: {name}", "an entry that is stored", f"compression method {method}")
        if flags & ~_UTF8_NAME_FLAG:
            raise _malformed(f"{where}: {name}", "no encryption and no data descriptor", f"flags {flags:#x}")
        kind = stat.S_IFMT(mode >> 16) if made_by >> 8 == 3 else 0  # 3: the upper half is a Unix mode
        if kind not in (0, stat.S_IFREG):
            raise _kind_error(f"{where}: {name}", kind)
        size, stored, header = _zip64_values(directory[end - extra_bytes : end], (size, stored, header), f"{where}: {name}")
        if size != stored:
            raise _malformed(f"{where}: {name}", "as many bytes as are stored", f"{size} declared, {stored} stored")
        yield _Entry(name, header, size)
        at = end
    if at != len(directory):
        raise _malformed(where, f"a directory of {count} entries", "bytes after the last")


def _zip64_values(extra: bytes, values: tuple[int, int, int], where: str) -> tuple[int, int, int]:
    """The 64-bit values from the zip64 field, for those that do not fit; no other field is allowed."""
    missing = [index for index, value in enumerate(values) if value == _IN_ZIP64]
    if len(extra) != (4 + 8 * len(missing) if missing else 0):
        raise _malformed(where, f"{len(missing)} zip64 values", f"{len(extra)} bytes of extra fields")
    result = list(values)
    if missing:
        kind, length, *found = struct.unpack(f"<2H{len(missing)}Q", extra)
        if kind != 1 or length != len(extra) - 4:
            raise _malformed(where, "a zip64 field", f"a field of kind {kind}")
        for index, value in zip(missing, found, strict=True):
            result[index] = value
    return result[0], result[1], result[2]


def _data_offset(file: BinaryIO, entry: _Entry, where: str) -> int:
    where = f"{where}: {entry.name}"
    magic, _, flags, method, _, _, _, _, _, name_bytes, extra_bytes = _LOCAL.unpack(_read(file, entry.header, _LOCAL.size, where))
    name = _read(file, entry.header + _LOCAL.size, name_bytes, where)
    if magic != b"PK\3\4" or name != entry.name.encode() or method or flags & ~_UTF8_NAME_FLAG:
        raise _malformed(where, "a local header that agrees with the directory", "another")
    data = entry.header + _LOCAL.size + name_bytes + extra_bytes
    if data % ALIGNMENT:
        raise _malformed(where, f"data that starts at a multiple of {ALIGNMENT}", f"byte {data}")
    return int(data)


def _name(raw: bytes, where: str) -> str:
    text = raw.decode("utf-8", errors="backslashreplace")
    return check_path(text, f"{where}: {shown(text)}")


def _read(file: BinaryIO, offset: int, count: int, where: str) -> bytes:
    data = b""
    if offset >= 0:
        file.seek(offset)
        data = file.read(count)
    if len(data) != count:
        raise _malformed(where, f"{count} bytes at byte {offset}", f"{len(data)}")
    return data


def _malformed(where: str, expected: str, got: str) -> UserError:
    return UserError(where, expected=expected, got=got, fix=_REPACK)


def _kind_error(where: str, mode: int) -> UserError:
    kind = "a symbolic link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
    return UserError(where, expected="a regular file", got=kind, fix="copy the bundle with its files in place of links or get it again")


def _too_many(where: Path | str) -> UserError:
    return UserError(str(where), expected=f"at most {MAX_FILES} files", got="more", fix=_REPACK)
