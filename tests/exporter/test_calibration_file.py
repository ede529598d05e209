"""The file of an unfinished calibration: written whole or not at all, read back into the same tensors, refused where it is another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dexport.errors import Failure, UserError
from dexport.exporter.calibration_file import Progress, load_progress, resume_path, save_progress

IDENTITY: dict[str, Any] = {"model": "a" * 64, "steps": 20, "sampler": {"name": "uniform", "radius": 0.3}, "loras": []}
PROGRESS = Progress(8, (3, 2, 1))


def _tensors() -> dict[str, torch.Tensor]:
    return {"denoiser/0/count": torch.tensor([1, 2]), "denoiser/0/rows": torch.randn(3, 4), "vae/0/limit": torch.zeros(0)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = resume_path(tmp_path / "statistics.safetensors")
    save_progress(path, _tensors() | {"samples/3/1": torch.ones(2)}, IDENTITY, PROGRESS)
    return path


def test_it_comes_back_into_the_tensors_that_are_there(tmp_path: Path) -> None:
    path, written = tmp_path / "file", _tensors()
    save_progress(path, written | {"samples/3/1": torch.ones(2)}, IDENTITY, PROGRESS)
    own = {name: torch.full_like(tensor, 7) for name, tensor in written.items()}
    progress, rest = load_progress(path, own, IDENTITY)
    assert progress == PROGRESS
    assert all(torch.equal(own[name], written[name]) for name in written)
    assert rest.keys() == {"samples/3/1"}


def test_counts_may_be_open(tmp_path: Path) -> None:
    save_progress(tmp_path / "file", _tensors(), IDENTITY, Progress(0, None))
    assert load_progress(tmp_path / "file", _tensors(), IDENTITY)[0] == Progress(0, None)


def test_it_lies_beside_the_result(file: Path) -> None:
    assert file.name == "statistics.safetensors.resume"
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("key", "mine", "message"),
    [
        ("steps", 4, "with steps 4, got steps 20; repeat the command that began it, or delete the file"),
        ("model", "b" * 64, r"with model b{57}\.\.\., got model a{57}"),
        ("sampler", {"name": "tdac"}, "with sampler .*tdac.*, got sampler .*uniform"),
        ("loras", ["x"], r"with loras \[.x.\], got loras \[\]"),
        ("new", 1, "with new 1, got new null"),
    ],
)
def test_the_first_difference_is_named(file: Path, key: str, mine: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_progress(file, _tensors(), IDENTITY | {key: mine})


def test_other_files_are_refused(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    safetensors.torch.save_file({"a": torch.zeros(1)}, other)
    for content in (None, b"", b"text", file.read_bytes()[:-1]):
        if content is not None:
            other.write_bytes(content)
        with pytest.raises(UserError, match="something else or a damaged file; delete it to begin anew"):
            load_progress(other, _tensors(), IDENTITY)


def test_missing_tensors_and_other_shapes_are_refused(file: Path) -> None:
    for changed in ({"more": torch.zeros(1)}, {"denoiser/0/count": torch.zeros(9, dtype=torch.int64)}):
        with pytest.raises(UserError, match="damaged file"):
            load_progress(file, _tensors() | changed, IDENTITY)


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Failure, match="No space left on device"):
        save_progress(file, {"a": torch.ones(1000)}, IDENTITY, PROGRESS)
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_a_folder_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="choose another folder with -o"):
        save_progress(tmp_path / "none" / "file", _tensors(), IDENTITY, PROGRESS)
