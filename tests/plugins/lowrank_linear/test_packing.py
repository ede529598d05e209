"""Codes of 4 bits go into bytes and come back."""

from __future__ import annotations

import torch

from dexport.plugins.lowrank_linear.packing import packed_codes, packed_scales, unpacked_codes


def test_codes_come_back() -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(3, 2)
    codes[1] = codes[1].flip(0)
    packed = packed_codes(codes)
    assert packed.shape == (3, 16) and packed.dtype is torch.uint8
    assert torch.equal(unpacked_codes(packed), codes)


def test_the_first_input_is_in_the_lower_half() -> None:
    assert packed_codes(torch.tensor([[1, -1, -8, 7]], dtype=torch.int8)).tolist() == [[0xF1, 0x78]]


def test_scales_of_a_group_stand_together() -> None:
    scales = torch.arange(6.0).reshape(3, 2)
    assert packed_scales(scales).tolist() == [[0, 2, 4], [1, 3, 5]] and packed_scales(scales).is_contiguous()
