"""Rotations: orthogonal for every width that models have, cheap, and invisible until something is rounded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from dexport.passes.quantization.rotation import (
    hadamard_factors,
    random_signs,
    rotate,
    rotated_weight,
    rotation_factors,
    rotation_nodes,
)
from tests.passes.graphs import LATENT, graph_of

WIDTHS = {1152: 36, 1408: 44, 1536: 12, 1920: 60, 2240: 140, 3072: 12, 4608: 36, 5120: 20, 8960: 140, 13824: 108, 192: 12, 384: 12, 768: 12}
"""Widths of published models and of the reference pipeline, and the order of the small factor."""


def _rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [*WIDTHS, 1, 2, 28, 1024])
def test_factors_are_hadamard(n: int) -> None:
    small, k = hadamard_factors(n)
    order = small.shape[0]
    assert order * 2**k == n and order == WIDTHS.get(n, 28 if n == 28 else 1)
    assert small.abs().eq(1).all() and torch.equal(small @ small.T, order * torch.eye(order))


@pytest.mark.parametrize("n", WIDTHS)
def test_rotation_is_orthogonal(n: int) -> None:
    """Each factor is, so their product is; and lengths and angles of rows stay."""
    for factor in rotation_factors(n):
        assert torch.allclose(factor @ factor.T, torch.eye(len(factor)), atol=1e-5)
    x, signs = _rows(4, n), random_signs(n, 7)
    turned = rotate(x, signs)
    assert torch.allclose(turned @ turned.T, x @ x.T, rtol=1e-4, atol=2e-3 * n**0.5)


def test_factors_are_the_whole_matrix() -> None:
    signs = random_signs(48, 3)
    whole = torch.diag(signs) @ torch.kron(*rotation_factors(48))
    assert torch.allclose(whole @ whole.T, torch.eye(48), atol=1e-5)
    x = _rows(2, 5, 48)
    assert torch.allclose(rotate(x, signs), x @ whole, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([12, 28, 64, 192, 384, 1152]), st.integers(0, 10**6))
def test_products_stay(n: int, seed: int) -> None:
    x, weight, signs = _rows(3, n, seed=seed), _rows(5, n, seed=seed + 1), random_signs(n, seed)
    assert torch.allclose(rotate(x, signs) @ rotated_weight(weight, signs).T, x @ weight.T, atol=1e-3)


def test_outliers_are_spread() -> None:
    x = _rows(64, 384)
    x[:, 5] *= 100
    turned = rotate(x, random_signs(384, 0))
    assert turned.abs().amax(1).mean() < 0.3 * x.abs().amax(1).mean()


def test_equal_channels_do_not_add_up() -> None:
    """Without signs in front, a constant row has all of its length in one output."""
    x = torch.ones(1, 384)
    assert rotate(x, torch.ones(384)).abs().amax() > 10
    assert rotate(x, random_signs(384, 0)).abs().amax() < 4


def test_signs_depend_on_the_seed_alone() -> None:
    assert torch.equal(random_signs(100, 4), random_signs(100, 4)) and not torch.equal(random_signs(100, 4), random_signs(100, 5))
    assert random_signs(100, 4).abs().eq(1).all()


@pytest.mark.parametrize("n", [0, 7, 92, 368, 2 * 997])
def test_says_which_sizes_have_none(n: int) -> None:
    with pytest.raises(ValueError, match=f"{n} channels"):
        hadamard_factors(n)


def test_only_linears_are_rotated() -> None:
    with pytest.raises(ValueError, match="only linears"):
        rotated_weight(_rows(4, 12, 3, 3), random_signs(12, 0))


@pytest.mark.parametrize("n", [12, 28, 48, 64])
def test_nodes_mean_the_same(n: int) -> None:
    signs = random_signs(n, 1)
    graph = graph_of(nn.Linear(8, n))
    nodes = fx.Graph()
    made: dict[str, torch.Tensor] = {}

    def constant(name: str, tensor: torch.Tensor) -> fx.Node:
        made[name] = tensor
        node = nodes.get_attr(name)
        node.meta["val"] = x.meta["val"].fake_mode.from_tensor(tensor)
        return node

    x = nodes.placeholder("x")
    x.meta["val"] = next(m.meta["val"] for m in graph.module.graph.nodes if m.target is torch.ops.aten.linear.default)
    turned = rotation_nodes(nodes, x, signs, constant)
    nodes.output(turned)
    real = _rows(3, 6, n)
    assert torch.allclose(fx.GraphModule(made, nodes)(real), rotate(real, signs), atol=1e-5)
    assert turned.meta["val"].shape[1:] == (6, n) and LATENT.shape[1] == 6
