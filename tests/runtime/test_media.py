"""Pictures and videos arrive in files, completely or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dexport.errors import Failure, UserError
from dexport.runtime.media import _replacing, check_output, numbered, save


def _pictures(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)


def test_one_png_has_the_pixels(tmp_path: Path) -> None:
    pixels = _pictures(1)
    assert save(pixels, tmp_path / "out.png", frames_per_second=8) == [tmp_path / "out.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), pixels[0])
    assert os.listdir(tmp_path) == ["out.png"]


def test_several_pictures_are_numbered(tmp_path: Path) -> None:
    pixels = _pictures(3)
    files = save(pixels, tmp_path / "out.png", frames_per_second=8)
    assert [file.name for file in files] == ["out-0.png", "out-1.png", "out-2.png"]
    assert all(np.array_equal(np.asarray(Image.open(file)), one) for file, one in zip(files, pixels))


def test_numbers_have_as_many_digits_as_the_last() -> None:
    names = [path.name for path in numbered(Path("a.png"), 11)]
    assert (names[0], names[10]) == ("a-00.png", "a-10.png")


def test_npy_holds_all_of_them(tmp_path: Path) -> None:
    pixels = _pictures(3)
    assert save(pixels, tmp_path / "out.npy", frames_per_second=8) == [tmp_path / "out.npy"]
    assert np.array_equal(np.load(tmp_path / "out.npy"), pixels)


@pytest.mark.parametrize(("rate", "milliseconds"), [(10, 100), (16, 60), (200, 20)])
def test_a_gif_has_every_frame_and_the_rate(rate: int, milliseconds: int, tmp_path: Path) -> None:
    frames = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (0, 100, 200)])
    save(frames[None], tmp_path / "out.gif", frames_per_second=rate)
    with Image.open(tmp_path / "out.gif") as gif:
        assert getattr(gif, "n_frames") == 3  # noqa: B009 (only pictures with frames have it)
        assert gif.info["duration"] == milliseconds
        gif.seek(2)
        assert gif.convert("RGB").getpixel((0, 0)) == (200, 200, 200)


def test_a_picture_as_gif(tmp_path: Path) -> None:
    save(np.full((1, 4, 4, 3), 255, np.uint8), tmp_path / "out.gif", frames_per_second=8)
    assert Image.open(tmp_path / "out.gif").size == (4, 4)


def test_mp4_has_every_frame_close_to_the_original_also_in_odd_sizes(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="dexport[video] is not installed")
    grey = np.linspace(30, 220, 5).astype(np.uint8)
    frames = np.broadcast_to(grey[:, None, None, None], (5, 33, 47, 3)).copy()
    save(frames[None], tmp_path / "out.mp4", frames_per_second=8)
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 8
        read = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(read) == 5
    assert all(abs(float(one.mean()) - float(value)) < 3 for one, value in zip(read, grey))


@pytest.mark.parametrize(
    ("name", "video", "message"),
    [
        ("out.jpg", False, "expected a file name that ends in .png, .gif, .npy for pictures, got '.jpg'; write to out.png"),
        ("out.png", True, "ends in .mp4, .gif, .npy for a video, got '.png'; write to out.mp4"),
        ("out.mp4", False, "for pictures, got '.mp4'"),
        ("out", False, "got ''; write to out.png"),
        ("none/out.png", False, "expected a folder that exists"),
    ],
)
def test_names_that_cannot_be_written_to(name: str, video: bool, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        check_output(tmp_path / name, video=video)
    assert message in str(error.value)


def test_a_folder_of_that_name_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out.png").mkdir()
    with pytest.raises(UserError, match=r"expected a file that can be written, got Is a directory; check permissions"):
        save(_pictures(1), tmp_path / "out.png", frames_per_second=8)
    assert os.listdir(tmp_path) == ["out.png"]


def test_a_full_disk_is_a_failure_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    with pytest.raises(Failure, match="expected space for the result, got a full disk; free some space"), _replacing(path) as part:
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "no space")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.png"]
