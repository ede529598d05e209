"""Pictures and videos into files: .png, .gif, .mp4 and .npy, each written completely or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dexport.errors import UserError
from dexport.runtime.disk import disk_full, is_full

Pixels = npt.NDArray[np.uint8]

_PICTURE_SUFFIXES = (".png", ".gif", ".npy")
_VIDEO_SUFFIXES = (".mp4", ".gif", ".npy")
_GIF_TICK_MS = 10  # the format counts time in hundredths of a second
_MP4_QUALITY = "18"  # x264's constant rate factor; 18 is visually lossless


def check_output(path: Path, *, video: bool) -> None:
    """Refuses a name that `save` could not write to, before the work of making the pictures.

    Args:
        path: where the result will go.
        video: it will be a video, not pictures.

    Raises:
        UserError: an unknown suffix, no such folder, or PyAV is not installed.
    """
    legal = _VIDEO_SUFFIXES if video else _PICTURE_SUFFIXES
    suffix = path.suffix.lower()
    if suffix not in legal:
        expected = f"a file name that ends in {', '.join(legal)} for {'a video' if video else 'pictures'}"
        fix = f"write to {path.with_suffix(legal[0]).name}" if path.name else f"write to out{legal[0]}"
        raise UserError(f"output {path}", expected=expected, got=repr(path.suffix), fix=fix)
    if not path.parent.is_dir():
        raise UserError(f"output {path}", expected="a folder that exists", got=f"no folder {path.parent}", fix=f"mkdir -p {path.parent}")
    if suffix == ".mp4" and find_spec("av") is None:
        fix = "run: pip install 'dexport[video]', or write a .gif"
        raise UserError(f"output {path}", expected="the package av", got="it is not installed", fix=fix)


def save(pixels: Pixels, path: Path, *, frames_per_second: int) -> list[Path]:
    """Writes pictures [count, height, width, 3] or videos [count, frames, height, width, 3], both RGB.

    A .npy file takes all of them. Otherwise several become several files, out.png as out-0.png, out-1.png and so on.

    Returns:
        The files written.

    Raises:
        UserError: what `check_output` refuses, or the folder cannot be written to.
        Failure: the disk is full, or the encoder failed.
    """
    video = pixels.ndim == 5
    check_output(path, video=video)
    if path.suffix.lower() == ".npy":
        _write(path, lambda part: _write_array(part, pixels))
        return [path]
    paths = [path] if len(pixels) == 1 else numbered(path, len(pixels))
    for one, target in zip(pixels, paths):
        encode = _encoder(one, target.suffix.lower(), frames_per_second)
        _write(target, encode)
    return paths


def numbered(path: Path, count: int) -> list[Path]:
    """out.png -> out-0.png, out-1.png, ...; with as many digits as the last one has."""
    digits = len(str(count - 1))
    return [path.with_name(f"{path.stem}-{index:0{digits}}{path.suffix}") for index in range(count)]


def _encoder(one: Pixels, suffix: str, frames_per_second: int) -> Callable[[Path], None]:
    """How to write one picture [height, width, 3] or one video [frames, height, width, 3]."""
    if suffix == ".mp4":
        return lambda part: _write_mp4(part, one, frames_per_second)
    if one.ndim == 4:
        return lambda part: _write_gif(part, one, frames_per_second)
    return lambda part: Image.fromarray(one).save(part, format=suffix[1:].upper())


def _write_array(part: Path, pixels: Pixels) -> None:
    with part.open("wb") as file:
        np.save(file, pixels, allow_pickle=False)


def _write_gif(part: Path, frames: Pixels, frames_per_second: int) -> None:
    pictures = [Image.fromarray(frame) for frame in frames]
    duration = max(2, round(1000 / frames_per_second / _GIF_TICK_MS)) * _GIF_TICK_MS  # players slow 10 ms and less down to 100
    pictures[0].save(part, format="GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0)


def _write_mp4(part: Path, frames: Pixels, frames_per_second: int) -> None:
    import av

    height, width = frames.shape[1] % 2, frames.shape[2] % 2
    even = np.pad(frames, ((0, 0), (0, height), (0, width), (0, 0)), mode="edge")  # 4:2:0 chroma needs even sizes
    with av.open(str(part), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(frames_per_second), options={"crf": _MP4_QUALITY})
        stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
        for frame in even:
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def _write(path: Path, encode: Callable[[Path], None]) -> None:
    with _replacing(path) as part:
        encode(part)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place if nothing goes wrong."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        if is_full(error):
            raise disk_full(path, "space for the result", "a full disk") from error
        got, fix = error.strerror or str(error), "check permissions or write somewhere else with -o"
        raise UserError(str(path), expected="a file that can be written", got=got, fix=fix) from error
    finally:
        part.unlink(missing_ok=True)
