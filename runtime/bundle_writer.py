"""Writes a bundle so that its name shows either the whole of it or what was there before.

Everything is written into a folder beside the output, on the same file system; `finish` hashes, adds the manifest, reads
the result back, syncs it and renames it to its name:

    with BundleWriter(out) as writer:
        ...  # put files into writer.directory
        writer.finish(manifest)

A `.dxb` output is packed from that folder, each file being deleted once it is in, so that the disk has to hold the bundle
once and its largest file twice. An output that exists is replaced only if it is a complete bundle, and stays until the
new one is complete; a folder is swapped by one system call (renameat2 with RENAME_EXCHANGE).
"""

import ctypes
import dataclasses
import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from dexport.errors import DexportError, Failure, UserError
from dexport.runtime.archive import ALIGNMENT, list_folder
from dexport.runtime.bundle import Bundle, open_bundle
from dexport.runtime.disk import disk_full, is_full
from dexport.runtime.manifest import MANIFEST_NAME, FileEntry, Manifest, manifest_to_json
from dexport.runtime.trust import default_trust_file, trust

ARCHIVE_SUFFIX = ".dxb"
_CHUNK_BYTES = 1 << 20
_NO_SPACE_BYTES = 64 << 10  # an error on a disk with less free than this is taken for the disk's
_LOCAL_HEADER_BYTES = 30
_ZIP64_FIELD_BYTES = 20  # zipfile puts one into every local header when told force_zip64
_PADDING_FIELD = 0xD935  # the kind that Android's zipalign uses for the same purpose
_FIELD_HEADER = struct.Struct("<2H")  # kind, bytes
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


class BundleWriter:
    """Writes one bundle; a context manager, which leaves nothing behind unless `finish` has returned.

    Attributes:
        out: the bundle's name, links resolved; a file if it ends in .dxb, else a folder.
        directory: where to put the bundle's files.
    """

    def __init__(self, out: Path, *, needed_bytes: int = 0) -> None:
        """Checks the output and makes the folder to write to; removes those that killed runs have left.

        Args:
            out: the bundle's name.
            needed_bytes: what the bundle will take at least, to fail now and not when the disk is full.

        Raises:
            UserError: `out` exists and is not a complete bundle, or cannot be written.
            Failure: the disk has less than `needed_bytes` free.
        """
        self.out = out.resolve()
        self._needed_bytes = needed_bytes
        check_output(self.out)
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._temporary, self._lock = _make_temporary(self.out)
        except OSError as error:
            got, fix = f"{error.strerror}", "check the permissions or write somewhere else with -o"
            raise UserError(str(self.out.parent), expected="a folder to write to", got=got, fix=fix) from error
        self.directory = self._temporary / "files"
        self.directory.mkdir()
        free = shutil.disk_usage(self._temporary).free
        if free < needed_bytes:
            self._remove()
            raise disk_full(self.out, f"{needed_bytes} bytes free", f"{free}")

    def __enter__(self) -> "BundleWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Removes what is not finished; turns a full disk into Failure, whatever a compiler made of it."""
        free = shutil.disk_usage(self._temporary).free
        full = is_full(error)
        full |= isinstance(error, Exception) and not isinstance(error, DexportError) and free < _NO_SPACE_BYTES
        written = sum(path.lstat().st_size for path in self._temporary.rglob("*")) if full else 0
        self._remove()
        if full:
            needed = max(self._needed_bytes, written + free + 1)
            raise disk_full(self.out, f"space for {needed} bytes or more", f"{free} bytes free after writing {written}") from error

    def opened(self, manifest: Manifest) -> Bundle:
        """What has been written so far as a bundle to try out before it is finished; its machine code is trusted."""
        entries = {relative: file_entry(path) for relative, path in _files(self.directory).items()}
        complete = dataclasses.replace(manifest, files=entries)
        return Bundle(self.directory, complete, list_folder(self.directory), complete.native_files(), trust=True, verified=True)

    def finish(self, manifest: Manifest) -> Path:
        """Completes the bundle and gives it its name.

        Args:
            manifest: all but `files`, which is filled from what lies in `directory`.

        Returns:
            The bundle's path.

        Raises:
            UserError: the files and the manifest do not make a legal bundle.
            Failure: the disk is too full to pack the bundle, or the file system cannot swap folders.
            OSError: the disk is full; the end of the `with` block makes a Failure of it.
        """
        if self.out.suffix == ARCHIVE_SUFFIX:
            result = self._temporary / self.out.name
            _check_space_to_pack(self.directory, self.out)
            _pack(self.directory, manifest, result)
        else:
            result = self.directory
            _complete_folder(self.directory, manifest)
        open_bundle(result, verify="sizes")
        check_output(self.out)
        if self.out.is_dir() and any(self.out.iterdir()):
            _exchange(result, self.out)
        else:
            os.replace(result, self.out)
        _sync(self.out.parent)
        return self.out

    def _remove(self) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)
        os.close(self._lock)


def trust_own_code(path: Path) -> None:
    """Adds a bundle's machine code to what the user trusts: to be called where it has just been compiled, and nowhere else."""
    manifest = open_bundle(path, verify="sizes").manifest
    own = {manifest.files[file].sha256: f"{path.name}: {file}" for file in sorted(manifest.native_files())}
    if own:
        trust(own, default_trust_file())


def copy_file(bundle: Bundle, relative: str, target: Path, *, link: bool = False) -> None:
    """Puts a file of a bundle at `target`, which must not exist; with `link` as a hard link where that is possible.

    Raises:
        UserError: no such file, or machine code that the user does not trust.
        Failure: the bundle has changed since it was opened.
        OSError: the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if link and bundle.path.is_dir():
        try:
            os.link(bundle.file(relative), target)
            return
        except OSError:  # a file system without hard links
            pass
    with target.open("xb") as file:
        file.write(bundle.map(relative).data)


def check_output(out: Path) -> None:
    """An output may be new, an empty folder, or a complete bundle of the same form, which will be replaced."""
    is_archive = out.suffix == ARCHIVE_SUFFIX
    if not out.exists() or (not is_archive and out.is_dir() and not any(out.iterdir())):
        return
    fix = "remove it or choose another name with -o"
    if out.is_dir() == is_archive:
        expected = "a file, as the name ends in .dxb" if is_archive else "a folder, as the name does not end in .dxb"
        raise UserError(str(out), expected=expected, got="a folder" if is_archive else "a file", fix=fix)
    try:
        open_bundle(out, verify="sizes")
    except DexportError as error:
        raise UserError(str(out), expected="nothing there, or a bundle to replace", got=f"something else ({error})", fix=fix) from error


def _make_temporary(out: Path) -> tuple[Path, int]:
    """A new folder beside `out` and the lock that marks it as in use; abandoned ones are removed first.

    The kernel drops the lock when the process ends, however it ends: unlike process ids, which the name only shows to
    people, that also holds across containers. The lock on the parent keeps others from taking the new folder for abandoned
    before it is locked.
    """
    ours = re.compile(rf"\.{re.escape(out.name)}\.[0-9]+\.\w+\.tmp")
    with _locked_parent(out.parent):
        for path in out.parent.iterdir():
            if ours.fullmatch(path.name):
                lock = _try_lock(path)
                if lock is not None:
                    shutil.rmtree(path, ignore_errors=True)
                    os.close(lock)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.{os.getpid()}.", suffix=".tmp", dir=out.parent))
        lock = _try_lock(temporary)
        if lock is None:
            raise OSError(errno.EAGAIN, "the new folder is locked by another process", str(temporary))
        return temporary, lock


def _try_lock(folder: Path) -> int | None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _locked_parent(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _complete_folder(directory: Path, manifest: Manifest) -> None:
    """Adds the manifest to a folder and brings everything in it to the disk."""
    entries = {relative: file_entry(path) for relative, path in _files(directory).items()}
    (directory / MANIFEST_NAME).write_bytes(manifest_to_json(dataclasses.replace(manifest, files=entries)))
    for path in directory.rglob("*"):
        _sync(path)
    _sync(directory)


def _check_space_to_pack(directory: Path, out: Path) -> None:
    sizes = [path.stat().st_size for path in _files(directory).values()]
    needed = max(sizes, default=0) + ALIGNMENT * (len(sizes) + 1)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise disk_full(out, f"{needed} bytes free to pack the largest file", f"{free}")


def _pack(directory: Path, manifest: Manifest, archive: Path) -> None:
    """Moves the files of a folder into an archive (see `runtime/archive.py` for its form), the manifest last."""
    entries = {}
    with archive.open("xb") as file:
        with zipfile.ZipFile(file, "w") as out:
            for relative, path in _files(directory).items():
                with _aligned_entry(out, file, relative) as entry:
                    entries[relative] = file_entry(path, entry)
                path.unlink()
            with _aligned_entry(out, file, MANIFEST_NAME) as entry:
                entry(memoryview(manifest_to_json(dataclasses.replace(manifest, files=entries))))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _aligned_entry(out: zipfile.ZipFile, file: io.BufferedWriter, name: str) -> Iterator[Callable[[memoryview], object]]:
    """Opens a stored entry whose data begin at a multiple of ALIGNMENT bytes."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # the same contents give the same archive
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    unpadded = file.tell() + _LOCAL_HEADER_BYTES + len(name) + _FIELD_HEADER.size + _ZIP64_FIELD_BYTES
    padding = -unpadded % ALIGNMENT
    info.extra = _FIELD_HEADER.pack(_PADDING_FIELD, padding) + bytes(padding)
    with out.open(info, "w", force_zip64=True) as entry:
        yield entry.write
    info.extra = b""  # the directory needs no padding


def _files(directory: Path) -> dict[str, Path]:
    return {relative: extent.file for relative, extent in sorted(list_folder(directory).items())}


def file_entry(path: Path, consume: Callable[[memoryview], object] = lambda chunk: None) -> FileEntry:
    """Hash and size of a file; `consume` gets its bytes on the way."""
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            consume(buffer[:count])
            size += count
    return FileEntry(sha256=digest.hexdigest(), bytes=size)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(source: Path, out: Path) -> None:
    """Swaps two folders in one step, so that `out` is never absent; the old bundle goes with the temporary folder."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None or rename(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(out), _RENAME_EXCHANGE) != 0:
        reason = os.strerror(ctypes.get_errno()) if rename else "no renameat2 in this system's C library"
        fix = "remove the old bundle first, or write a .dxb"
        raise Failure(str(out), expected="a file system that can swap two folders", got=reason, fix=fix)
