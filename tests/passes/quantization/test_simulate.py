"""What searches try out is what the operation will do."""

from __future__ import annotations

import pytest
import torch

from dexport.passes.quantization.recipe import ActivationSpec, WeightSpec
from dexport.passes.quantization.simulate import simulated_activations, simulated_weight
from dexport.passes.quantization.weights import dequantize, quantize_weight
from dexport.plugins.formats import fake_quantize, format_of
from dexport.plugins.quantized_linear.reference import quantized_linear_reference

ROWS = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
UNIT = torch.eye(64, dtype=torch.int8), torch.ones(64, 1)


@pytest.mark.parametrize(
    "spec", [WeightSpec(format="int4"), WeightSpec(format="int4", granularity="block-16", range="mse"), WeightSpec(format="nvfp4")]
)
def test_weights(spec: WeightSpec) -> None:
    assert torch.allclose(simulated_weight(ROWS, spec), dequantize(quantize_weight(ROWS, spec)), atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "block", "micro"),
    [
        (ActivationSpec(format="int8", mode="dynamic"), 0, ""),
        (ActivationSpec(format="int4", mode="dynamic", granularity="block-16"), 16, ""),
        (ActivationSpec(format="mxfp4", mode="dynamic"), 32, "mxfp4"),
        (ActivationSpec(format="nvfp4", mode="dynamic"), 16, "nvfp4"),
    ],
)
def test_dynamic_activations_are_those_of_the_operation(spec: ActivationSpec, block: int, micro: str) -> None:
    """A unit matrix for a weight gives the rounded rows back."""
    coarse = ROWS.abs().amax() / (6 * 448) if micro == "nvfp4" else None
    name = "e2m1" if micro else spec.format
    expected = quantized_linear_reference(ROWS, *UNIT, None, None, coarse, None, "int8", name, "dynamic", block, micro)
    assert torch.equal(simulated_activations(ROWS, spec), expected)


@pytest.mark.parametrize("mode", ["static", "table"])
def test_constant_scales_are_one_over_all_rows(mode: str) -> None:
    expected = fake_quantize(ROWS, ROWS.abs().amax() / 127, format_of("int8"))
    assert torch.equal(simulated_activations(ROWS, ActivationSpec(format="int8", mode=mode)), expected)
    choice = simulated_activations(ROWS, ActivationSpec(format="e4m3|e5m2", mode=mode))  # of a choice the first
    assert torch.equal(choice, simulated_activations(ROWS, ActivationSpec(format="e4m3", mode=mode)))


def test_no_spec_rounds_nothing() -> None:
    assert simulated_activations(ROWS, None) is ROWS


def test_rows_of_zeros() -> None:
    for spec in (
        ActivationSpec(format="int8"),
        ActivationSpec(format="nvfp4", mode="dynamic"),
        ActivationSpec(format="int8", mode="dynamic"),
    ):
        assert not simulated_activations(torch.zeros(2, 32), spec).any()
