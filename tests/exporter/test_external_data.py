"""The data file beside an ONNX model: every weight once, where it can be mapped, and nothing that is not finite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dexport.errors import Failure
from dexport.exporter.external_data import WeightFile
from dexport.passes.graph import Weight


def _weight(tensor: torch.Tensor, origin: str = "a.weight") -> Weight:
    return Weight(tuple(tensor.shape), tensor.dtype, lambda: tensor, origin)


def test_weights_lie_where_their_places_say(tmp_path: Path) -> None:
    large = torch.randn(200, 100)
    tensors = [torch.arange(3), large, torch.tensor([1.0, 2.0], dtype=torch.bfloat16), large.t(), torch.tensor(2.5)]
    with WeightFile(tmp_path / "w.data") as file:
        places = [file.put(_weight(tensor, f"w{index}")) for index, tensor in enumerate(tensors)]
    content = (tmp_path / "w.data").read_bytes()
    for place, tensor in zip(places, tensors, strict=True):
        assert place.offset % (4096 if tensor is large else 64) == 0
        data = bytearray(content[place.offset : place.offset + place.length])
        assert torch.equal(torch.frombuffer(data, dtype=tensor.dtype).reshape(tensor.shape), tensor)


def test_the_same_weight_is_read_and_written_once(tmp_path: Path) -> None:
    reads = []
    tensor = torch.randn(4, 4)
    weight = replace(_weight(tensor), load=lambda: reads.append(1) or tensor)  # type: ignore[func-returns-value]
    with WeightFile(tmp_path / "w.data") as file:
        first, again = file.put(weight), file.put(replace(weight))
        other = file.put(replace(weight, origin="b.weight"))
        constants = [file.put_bytes(b"1234"), file.put_bytes(b"5678"), file.put_bytes(b"1234")]
    assert first == again != other
    assert constants[0] == constants[2] != constants[1]
    assert len(reads) == 2


def test_an_empty_file_is_removed(tmp_path: Path) -> None:
    with WeightFile(tmp_path / "w.data"):
        assert (tmp_path / "w.data").exists()
    assert not (tmp_path / "w.data").exists()


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (
            _weight(torch.tensor([1.0, float("nan"), float("inf")])),
            "expected finite weights, got 2 NaN or Inf values; repair or",
        ),
        (replace(_weight(torch.ones(2)), shape=(3,)), r"expected a tensor \(3,\) torch.float32, got \(2,\) torch.float32; check that the"),
        (replace(_weight(torch.ones(2)), dtype=torch.float16), r"expected a tensor \(2,\) torch.float16, got \(2,\) torch.float32"),
    ],
)
def test_a_weight_that_is_not_what_it_says_is_refused_by_name(tmp_path: Path, weight: Weight, message: str) -> None:
    with WeightFile(tmp_path / "w.data") as file, pytest.raises(Failure, match=f"a.weight: {message}"):
        file.put(weight)
