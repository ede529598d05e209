"""What is kept in a folder comes back, and nothing replaces anything."""

from __future__ import annotations

from pathlib import Path

import torch

from dexport.passes.quantization.scratch import Scratch


def test_tensors_come_back_one_by_one(tmp_path: Path) -> None:
    tensors = {
        "codes": torch.arange(6, dtype=torch.int8).reshape(2, 3),
        "half": torch.ones(2, 3, dtype=torch.float16).t(),
        "e4m3": torch.ones(2).to(torch.float8_e4m3fn),
        "e8m0": torch.full((2,), 4.0).to(torch.float8_e8m0fnu),
        "graph": torch.ones(2, requires_grad=True),
    }
    kept = Scratch(tmp_path).keep("a layer", tensors)
    assert kept.keys() == tensors.keys()
    for name, weight in kept.items():
        found, tensor = weight.load(), tensors[name]
        assert weight.shape == tensor.shape == found.shape and weight.dtype is tensor.dtype is found.dtype
        assert torch.equal(found.float(), tensor.detach().float()) and not found.requires_grad
        assert "a layer" in weight.origin and name in weight.origin


def test_one_key_may_be_kept_twice(tmp_path: Path) -> None:
    """The first stays as it was: two searches may call what they found by one name."""
    scratch = Scratch(tmp_path)
    first, second = (scratch.keep("same", {"x": torch.full((3,), float(v))})["x"] for v in (1, 2))
    assert first.load().tolist() == [1, 1, 1] and second.load().tolist() == [2, 2, 2] and first.origin != second.origin


def test_equal_content_takes_no_more_room(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    first, second = (scratch.keep("same", {"x": torch.ones(3)})["x"] for _ in range(2))
    assert len(list(tmp_path.iterdir())) == 1 and first.origin == second.origin
