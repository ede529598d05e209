"""A hollow model has every shape and no weights, and its computed buffers are real."""

from __future__ import annotations

import torch
from torch import nn

from dexport.exporter.hollow import hollow_model


class Model(nn.Module):
    """Two large layers, one of which the library keeps in fp32."""

    _keep_in_fp32_modules = ("wo",)

    def __init__(self) -> None:
        super().__init__()
        self.wi, self.wo = nn.Linear(10_000, 10_000, bias=False), nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4, elementwise_affine=False)
        self.table = nn.Buffer(torch.arange(4.0).cos())


def test_a_model_of_any_size_costs_nothing() -> None:
    model = hollow_model(Model, torch.float16)
    weight = model.get_parameter("wi.weight")
    assert weight.shape == (10_000, 10_000) and weight.dtype is torch.float16
    assert weight.device.type == "cpu" and weight.untyped_storage().nbytes() == 2
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_what_the_library_keeps_wide_stays_wide_and_buffers_are_real() -> None:
    model = hollow_model(Model, torch.float16)
    assert {p.dtype for p in (model.get_parameter("wo.weight"), model.get_parameter("wo.bias"))} == {torch.float32}
    assert torch.equal(model.get_buffer("table"), torch.arange(4.0).cos())
