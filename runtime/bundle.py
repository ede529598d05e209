"""Opens a bundle, a folder or a `.dxb`, and hands out its files; trusts nothing that is in it.

Opening checks the manifest (see `manifest.py`), that exactly the files it lists are there with the sizes and, unless told
otherwise, the sha256 it gives, and scans ONNX files. Machine code is handed out only if the user trusts its sha256.
A `Bundle` keeps no file open: whoever replaces or edits a bundle in use is noticed at the next access.
"""

import hashlib
import io
import mmap
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dexport.errors import Failure, UserError
from dexport.runtime.archive import Extent, identity_of, list_archive, list_folder
from dexport.runtime.disk import is_full
from dexport.runtime.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, manifest_from_json
from dexport.runtime.onnx_scan import scan_onnx
from dexport.runtime.strict_json import shown
from dexport.runtime.tensor_file import tensors_from_bytes
from dexport.runtime.trust import default_trust_file, trusted_hashes

ONNX_DOMAINS = frozenset({"", "ai.onnx.ml", "com.microsoft", "dexport", "trt"})
_CHUNK_BYTES = 1 << 20
_MAX_READ_BYTES = 256 << 20
_ABANDONED_SECONDS = 24 * 3600  # a part file this old belongs to a process that was killed
_REBUILD = "get the bundle again or rebuild it"

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all and the file being read."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; made by `open_bundle`.

    Attributes:
        path: the folder or `.dxb`.
        manifest: what `manifest.json` says, checked.
        extents: where each file lies, the manifest left out.
        native: paths of machine code.
        trust: hand out machine code whatever the user's trust file says.
        verified: the sha256 of every file was compared.
    """

    path: Path
    manifest: Manifest
    extents: Mapping[str, Extent]
    native: frozenset[str]
    trust: bool
    verified: bool

    def map(self, relative: str, *, copy_on_write: bool = False) -> Bytes:
        """Maps a file of the bundle, also from inside a `.dxb`, without reading or copying it.

        Args:
            relative: the file's path in the bundle.
            copy_on_write: the array can be written to, which changes private copies of single pages and never the
                bundle; for backends that insist on writable memory. Else it is read-only.

        Returns:
            uint8 [bytes of the file]. It stays valid as long as it is referenced, unless someone truncates the file.

        Raises:
            UserError: no such file, or machine code that the user does not trust.
            Failure: the bundle has changed since it was opened.
        """
        return _map(self._released(relative), mmap.ACCESS_COPY if copy_on_write else mmap.ACCESS_READ)

    def read_bytes(self, relative: str, *, max_bytes: int = _MAX_READ_BYTES) -> bytes:
        """Copies a small file; raises like `map`, and UserError for one beyond `max_bytes`."""
        extent = self._released(relative)
        if extent.bytes > max_bytes:
            raise UserError(self._name(relative), expected=f"at most {max_bytes} bytes", got=f"{extent.bytes}", fix=_REBUILD)
        return _read(extent)

    def tensors(self, relative: str) -> dict[str, np.ndarray[Any, Any]]:
        """Read-only views of the tensors in a safetensors file, see `tensor_file.tensors_from_bytes`; raises like `map`."""
        return tensors_from_bytes(self.map(relative), self._name(relative))

    def file(self, relative: str) -> Path:
        """A path where a backend can open a file, with the other files of its variant at their places beside it.

        In a folder that is the file itself. A `.dxb` is unpacked, these files only and once, into
        `bundles/<digest>/` of the cache folder: $DEXPORT_CACHE_DIR or ~/.cache/dexport.

        Raises:
            UserError: like `map`.
            Failure: like `map`, the cache cannot be written or its disk is full, a checksum differs while unpacking.
        """
        self._released(relative)
        if self.path.is_dir():
            return self.extents[relative].file
        variants = [variant.files for component in self.manifest.components.values() for variant in component.variants]
        wanted = sorted({relative}.union(*(files for files in variants if relative in files)))
        folder = _cache_folder() / "bundles" / self.manifest.digest()
        for path in wanted:
            self._unpack(path, folder)
        return folder / relative

    def _unpack(self, relative: str, folder: Path) -> None:
        """Puts a file into the cache by a rename, so that any number of processes may do the same at once."""
        extent, target = self._released(relative), folder / relative
        part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
        try:
            if target.is_file() and target.stat().st_size == extent.bytes:
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned_parts(target.parent)
            try:
                with part.open("xb") as out:
                    self._check_hash(relative, out.write)
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            free = shutil.disk_usage(_existing(folder)).free
            got = f"{free} bytes free" if is_full(error) else f"{error.strerror}"
            fix = "free some space or set DEXPORT_CACHE_DIR to another folder"
            raise Failure(str(folder), expected=f"room to unpack {extent.bytes} bytes of {relative}", got=got, fix=fix) from error

    def _released(self, relative: str) -> Extent:
        """Where a file lies, if it may be handed out."""
        extent = self.extents.get(relative)
        if extent is None:
            raise UserError(self._name(relative), expected="a file of the bundle", got="none of that name", fix=_REBUILD)
        if relative in self.native and not self.trust:
            if self.manifest.files[relative].sha256 not in trusted_hashes(default_trust_file()):
                raise UserError(
                    self._name(relative),
                    expected="machine code that was built on this machine or that you trust",
                    got="code from elsewhere",
                    fix="build it here with `dexport finalize`, or pass --trust (trust=True) if you know who made it",
                )
            if not self.verified:
                self._check_hash(relative, lambda _: None)
        return extent

    def _check_hash(self, relative: str, consume: Callable[[memoryview], object]) -> None:
        digest = hashlib.sha256()
        with _opened(self.extents[relative]) as file:
            for chunk in _chunks(file, self.extents[relative]):
                digest.update(chunk)
                consume(chunk)
        if digest.hexdigest() != self.manifest.files[relative].sha256:
            expected, got = f"sha256 {self.manifest.files[relative].sha256}", digest.hexdigest()
            raise UserError(self._name(relative), expected=expected, got=got, fix=_REBUILD)

    def _name(self, relative: str) -> str:
        return f"{self.path}: {shown(relative)}"


def open_bundle(
    path: str | Path, *, trust: bool = False, verify: Literal["full", "sizes"] = "full", progress: Progress | None = None
) -> Bundle:
    """Opens a bundle and checks all of it.

    Args:
        path: a folder or a `.dxb`.
        trust: hand out machine code (TensorRT plans, libraries) even if it is not in the user's trust file.
        verify: "full" compares the sha256 of every file (about 1 s per GB); "sizes" leaves that out, except for machine
            code and for what a `.dxb` unpacks.
        progress: called while files are compared.

    Raises:
        UserError: it is not a bundle, is damaged, hostile, or needs a newer dexport.
        Failure: the bundle changed while it was read.
    """
    path = Path(path)
    try:
        extents = _list(path)
        manifest_extent = extents.pop(MANIFEST_NAME)
        if manifest_extent.bytes > MAX_MANIFEST_BYTES:
            expected = f"at most {MAX_MANIFEST_BYTES} bytes"
            raise UserError(f"{path}: {MANIFEST_NAME}", expected=expected, got=f"{manifest_extent.bytes}", fix=_REBUILD)
        manifest = manifest_from_json(_read(manifest_extent), f"{path}: {MANIFEST_NAME}")
        _check_files(path, manifest, extents)
        bundle = Bundle(path, manifest, extents, manifest.native_files(), trust, verify != "sizes")
        if bundle.verified:
            _check_hashes(bundle, progress)
        _scan_onnx_files(bundle)
    except OSError as error:
        got = error.strerror or type(error).__name__
        raise UserError(str(path), expected="files that can be read", got=got, fix="check permissions and the disk") from error
    return bundle


def _list(path: Path) -> dict[str, Extent]:
    if not path.exists():
        raise UserError(str(path), expected="a bundle", got="nothing there", fix="check the path or make one with `dexport build`")
    if path.is_dir():
        if (path / "model_index.json").exists():
            fix = f"build it first: dexport build {path} --target cpu"
            raise UserError(str(path), expected="a bundle", got="a diffusers model", fix=fix)
        if not (path / MANIFEST_NAME).exists():
            raise UserError(str(path), expected=f"a bundle with {MANIFEST_NAME}", got="a folder without", fix="check the path")
        return list_folder(path)
    if not path.is_file():
        raise UserError(str(path), expected="a folder or a .dxb file", got="something else", fix="check the path")
    extents = list_archive(path)
    if MANIFEST_NAME not in extents:
        raise UserError(str(path), expected=f"a bundle with {MANIFEST_NAME}", got="an archive without", fix=_REBUILD)
    return extents


def _check_files(path: Path, manifest: Manifest, extents: Mapping[str, Extent]) -> None:
    for relative, entry in manifest.files.items():
        extent = extents.get(relative)
        if extent is None:
            raise UserError(f"{path}: {relative}", expected=f"a file of {entry.bytes} bytes", got="no such file", fix=_REBUILD)
        if extent.bytes != entry.bytes:
            raise UserError(f"{path}: {relative}", expected=f"{entry.bytes} bytes", got=f"{extent.bytes}", fix=_REBUILD)
    for relative in extents:
        if relative not in manifest.files:
            expected = f"only the files that {MANIFEST_NAME} lists"
            raise UserError(f"{path}: {relative}", expected=expected, got="one more", fix="delete it or get the bundle again")


def _check_hashes(bundle: Bundle, progress: Progress | None) -> None:
    total, done = sum(entry.bytes for entry in bundle.manifest.files.values()), 0

    def report(relative: str, chunk: memoryview) -> None:
        nonlocal done
        done += len(chunk)
        if progress is not None:
            progress(done, total, relative)

    for relative in bundle.manifest.files:
        bundle._check_hash(relative, partial(report, relative))


def _scan_onnx_files(bundle: Bundle) -> None:
    """Scans every file that a backend may parse as ONNX, whatever its name."""
    components = bundle.manifest.components.values()
    parsed = {variant.artifact for component in components for variant in component.variants if variant.is_kit or variant.format == "onnx"}
    parsed.update(path for path in bundle.manifest.files if path.lower().endswith(".onnx"))
    for relative in sorted(parsed):
        folder = relative.rpartition("/")[0]
        prefix = f"{folder}/" if folder else ""
        sizes = {path[len(prefix) :]: entry.bytes for path, entry in bundle.manifest.files.items() if path.startswith(prefix)}
        scan_onnx(_map(bundle.extents[relative], mmap.ACCESS_READ).data, bundle._name(relative), sizes=sizes, domains=ONNX_DOMAINS)


@contextmanager
def _opened(extent: Extent) -> Iterator[io.BufferedReader]:
    """The file that an extent is in, if it still is what was listed."""
    try:
        file = extent.file.open("rb")
    except FileNotFoundError:
        raise _changed(extent, "nothing there") from None
    except OSError as error:
        raise UserError(str(extent.file), expected="a file that can be read", got=f"{error.strerror}", fix="check permissions") from error
    with file:
        if identity_of(os.fstat(file.fileno())) != extent.identity:
            raise _changed(extent, "another file, or changed contents")
        yield file


def _chunks(file: io.BufferedReader, extent: Extent) -> Iterator[memoryview]:
    """The bytes of an extent, read into one small buffer and not through a mapping, which a truncation turns into SIGBUS."""
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, extent.bytes)))
    file.seek(extent.offset)
    left = extent.bytes
    while left:
        count = file.readinto(buffer[: min(left, len(buffer))])
        if not count:
            raise _changed(extent, "a shorter file")
        yield buffer[:count]
        left -= count


def _map(extent: Extent, access: int) -> Bytes:
    if not extent.bytes:
        return np.empty(0, np.uint8)
    slack = extent.offset % mmap.ALLOCATIONGRANULARITY  # 0 unless pages are larger than the archive's alignment
    with _opened(extent) as file:
        mapped = mmap.mmap(file.fileno(), slack + extent.bytes, access=access, offset=extent.offset - slack)
    return np.frombuffer(mapped, np.uint8)[slack:]


def _read(extent: Extent) -> bytes:
    with _opened(extent) as file:
        return b"".join(bytes(chunk) for chunk in _chunks(file, extent))


def _changed(extent: Extent, got: str) -> Failure:
    return Failure(str(extent.file), expected="the file as it was when the bundle was opened", got=got, fix="open the bundle again")


def _cache_folder() -> Path:
    return Path(os.environ.get("DEXPORT_CACHE_DIR") or Path.home() / ".cache" / "dexport")


def _remove_abandoned_parts(folder: Path) -> None:
    for part in folder.glob(".*.part"):
        with suppress(FileNotFoundError):  # another process finished it, or removed it first
            if time.time() - part.stat().st_mtime > _ABANDONED_SECONDS:
                part.unlink()


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
