"""Weights as they lie in a file: packed two to a byte, turned, and never read too early."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from dexport.errors import Failure
from dexport.exporter.stored import derived, hollow, ir_type, pack, packed, permuted, plain, torch_type
from dexport.passes.graph import Weight

CODES = torch.tensor([[1, -2, 3], [-8, 7, 0]], dtype=torch.int8)
WEIGHT = Weight((2, 3), torch.int8, lambda: CODES, "file:codes")


def test_two_codes_share_a_byte_the_first_in_the_low_half() -> None:
    assert pack(CODES).tolist() == [0x01 | (0xE << 4), 0x03 | (0x8 << 4), 0x07]
    assert pack(CODES[0]).tolist() == [0x01 | (0xE << 4), 0x03], "an odd number is filled up"
    stored = packed(WEIGHT, ir.DataType.INT4)
    assert (stored.dtype, stored.shape, stored.weight.shape) == (ir.DataType.INT4, (2, 3), (3,))
    assert torch.equal(stored.weight.load(), pack(CODES))
    unpacked = ir.PackedTensor(stored.weight.load().numpy(), ir.DataType.INT4, shape=ir.Shape((2, 3))).numpy()
    assert torch.equal(torch.from_numpy(unpacked.astype("int8")), CODES)


def test_what_is_made_of_a_weight_has_an_origin_of_its_own() -> None:
    turned = permuted(WEIGHT, (1, 0))
    assert (turned.shape, turned.dtype) == ((3, 2), torch.int8)
    assert torch.equal(turned.load(), CODES.t()) and turned.load().is_contiguous()
    twice = derived(WEIGHT, (2, 3), torch.float32, "doubled", lambda t: t.float() * 2)
    assert torch.equal(twice.load(), CODES.float() * 2)
    assert len({WEIGHT.origin, turned.origin, twice.origin, packed(WEIGHT, ir.DataType.INT4).weight.origin}) == 4


def test_types_have_two_names() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool):
        assert torch_type(ir_type(dtype)) is dtype


def test_a_hollow_tensor_is_not_read() -> None:
    tensor = hollow("weight", plain(WEIGHT))
    assert (tensor.dtype, tuple(tensor.shape)) == (ir.DataType.INT8, (2, 3))
    with pytest.raises(Failure, match="weight: expected weights to be read only while the data file is written"):
        tensor.numpy()
