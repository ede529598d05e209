"""`quantized_attention` against loops in double precision, and as an operation of PyTorch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from dexport.plugins.formats import format_of
from dexport.plugins.quantized_attention.reference import (
    quantized_attention,
    quantized_attention_reference,
    quantized_probabilities,
)

QUERIES, KEYS, HEAD = 4, 5, 8
FORMS: dict[str, dict[str, Any]] = {
    "fp8": {},
    "fp8 causal": {"causal": True, "keys": QUERIES},
    "fp8 boolean mask": {"mask": torch.tensor([True, True, False, True, True])},
    "fp8 additive mask": {"mask": torch.linspace(-2, 1, KEYS).expand(2, 1, 1, KEYS)},
    "dgq": {"format": "int8", "probabilities": "log2-4", "start_tokens": 1, "scales": (0.03, 0.02, 0.025)},
    "dgq, few bits": {"format": "int6", "probabilities": "log2-2", "scales": (0.09, 0.08, 0.1)},
}


def _arguments(form: str, dtype: torch.dtype = torch.float32) -> list[Any]:
    f: dict[str, Any] = {"mask": None, "scales": (0.01, 0.012, 0.008), "causal": False, "format": "e4m3", "probabilities": "e4m3"}
    f |= FORMS[form]
    generator = torch.Generator().manual_seed(0)
    sizes = (QUERIES, f.get("keys", KEYS), f.get("keys", KEYS))
    operands = [torch.randn(2, 3, size, HEAD, generator=generator).to(dtype) for size in sizes]
    return [*operands, f["mask"], *f["scales"], 0.4, f["causal"], f["format"], f["probabilities"], f.get("start_tokens", 0)]


def _slow(arguments: list[Any]) -> torch.Tensor:
    """The definition in the module's docstring, number by number in double precision."""
    query, key, value, mask, *scales, factor, causal, name, probabilities, start = arguments
    number = format_of(name)
    q, k, v = (number.round(x.double() / s) * s for x, s in zip((query, key, value), scales))
    k[:, :, :start] = key[:, :, :start].double()
    result = torch.zeros(*query.shape[:-1], HEAD, dtype=torch.float64)
    for picture in range(len(query)):
        chances = torch.zeros(query.shape[1], query.shape[2], key.shape[2], dtype=torch.float64)
        for head, row in torch.cartesian_prod(torch.arange(query.shape[1]), torch.arange(query.shape[2])).tolist():
            scores = [factor * float(q[picture, head, row] @ k[picture, head, column]) for column in range(key.shape[2])]
            if mask is not None:
                at = mask.expand(2, 1, 1, KEYS)[picture, 0, 0]
                scores = [s + float(m) if at.dtype is not torch.bool else s if m else -math.inf for s, m in zip(scores, at)]
            weights = [math.exp(s) if not (causal and column > row) else 0.0 for column, s in enumerate(scores)]
            chances[head, row] = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        largest = float(chances[..., start:].max())
        for index in torch.cartesian_prod(*(torch.arange(n) for n in chances.shape)).tolist():
            exact, head, row, column = float(chances[tuple(index)]), *index
            if column < start:
                rounded = exact
            elif probabilities == "e4m3":
                rounded = float(format_of("e4m3").round(torch.tensor(exact * 448))) / 448
            else:
                last = 2 ** int(probabilities[-1]) - 1
                rounded = largest * 2.0 ** -(last if exact == 0 else min(last, round(-math.log2(exact / largest))))
            result[picture, head, row] += rounded * v[picture, head, column]
    return result


@pytest.mark.parametrize("form", FORMS)
def test_is_what_the_definition_says(form: str) -> None:
    arguments = _arguments(form)
    torch.testing.assert_close(quantized_attention(*arguments), _slow(arguments).float(), rtol=1e-4, atol=1e-5)


def test_is_near_attention_and_in_its_dtype() -> None:
    arguments = _arguments("fp8", torch.bfloat16)
    found, exact = quantized_attention(*arguments), functional.scaled_dot_product_attention(*arguments[:3], scale=0.4)
    assert found.dtype is torch.bfloat16
    assert 0 < float((found - exact).float().square().mean() / exact.float().square().mean()) < 0.01


def test_prompts_of_a_batch_do_not_see_each_other() -> None:
    arguments = _arguments("dgq")
    both = quantized_attention(*arguments)
    assert torch.equal(both[1:], quantized_attention(*(a[1:] if isinstance(a, torch.Tensor) else a for a in arguments)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 8))
def test_logarithms_are_within_half_an_octave(seed: int, bits: int) -> None:
    exact = (torch.randn(2, 3, 5, 9, generator=torch.Generator().manual_seed(seed)) * 2).softmax(-1)
    found = quantized_probabilities(exact, f"log2-{bits}")
    largest = exact.flatten(1).amax(1)[:, None, None, None]
    assert torch.equal(found.flatten(1).amax(1), exact.flatten(1).amax(1))
    near = (torch.log2(found / exact).abs() <= 0.5 + 1e-4) | (exact < largest * 2.0 ** (0.5 - (2**bits - 1)))
    assert near.all()


def test_what_is_not_seen_stays_finite() -> None:
    found = quantized_probabilities(torch.zeros(1, 1, 2, 3), "log2-8")
    assert torch.isfinite(found).all() and float(found.max()) < 1e-30


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="'log2-9' is no format of probabilities"):
        quantized_probabilities(torch.ones(1, 1, 1, 1), "log2-9")


@pytest.mark.parametrize("form", ["fp8", "dgq"])
def test_is_an_operation_with_gradients(form: str) -> None:
    arguments = _arguments(form)
    torch.library.opcheck(quantized_attention, arguments, test_utils=("test_schema", "test_faketensor"))
    leaves = [a.requires_grad_() for a in arguments[:3]]
    found = torch.autograd.grad(quantized_attention(*arguments).square().sum(), leaves)
    wanted = torch.autograd.grad(quantized_attention_reference(*arguments).square().sum(), leaves)
    assert all(torch.equal(a, b) and float(a.abs().max()) > 0 for a, b in zip(found, wanted, strict=True))
