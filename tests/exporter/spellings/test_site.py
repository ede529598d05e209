"""Which formats are multiples of integers of 4 and 8 bits."""

from __future__ import annotations

import pytest
import torch

from dexport.exporter.spellings.site import integer_bits, integer_step, integers_of
from dexport.plugins.formats import FORMATS, format_of

STEPS = {"e3m4": None, "e2m5": None, "e3m2": None, "e4m3": None, "e5m2": None, "e2m3": 0.125, "e2m1": 0.5, "e1m2": 0.5, "e3m0": 0.25}


@pytest.mark.parametrize("name", FORMATS)
def test_multiples_of_a_power_of_two(name: str) -> None:
    number = format_of(name)
    step = integer_step(number)
    assert step == STEPS.get(name, 1.0)
    if step is None:
        return
    codes = (
        torch.arange(int(number.lowest), int(number.largest) + 1, dtype=torch.int8) if number.is_integer else number.encode(number.grid())
    )
    integers = integers_of(number, codes)
    assert torch.equal(integers.float() * step, number.decode(codes, torch.float32))
    assert integer_bits(number) == (4 if name in ("int4", "int3", "int2", "e1m2") else 8)
