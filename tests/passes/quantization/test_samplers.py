"""Samplers: how many pairs each step gives, from which pictures, and which node of a denoiser is its middle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dexport.errors import UserError
from dexport.passes.quantization.samplers import (
    NAMES,
    Sampler,
    chosen_pictures,
    density_and_variety,
    feature,
    middle_node,
    shares,
    step_counts,
)
from tests.passes.graphs import graph_of


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(NAMES), st.integers(1, 60), st.integers(1, 20), st.integers(1, 300), st.integers(0, 9))
def test_counts_sum_to_the_total_and_no_step_gives_more_than_there_are(name: str, steps: int, pictures: int, total: int, seed: int) -> None:
    features = torch.randn(steps, 6, generator=torch.Generator().manual_seed(seed))
    counts = step_counts(Sampler(name), steps, pictures, total, seed, features)
    assert len(counts) == steps
    assert sum(counts) == min(total, steps * pictures)
    assert min(counts) >= 0
    assert max(counts) <= pictures
    assert counts == step_counts(Sampler(name), steps, pictures, total, seed, features)


def test_uniform_takes_equal_numbers_of_every_step() -> None:
    assert step_counts(Sampler(), 20, 64, 200, 0) == [10] * 20
    assert set(step_counts(Sampler(), 20, 64, 256, 0)) == {12, 13}


def test_uniform_takes_every_cth_of_many_steps() -> None:
    counts = step_counts(Sampler(), 100, 64, 250, 0)
    assert [step for step, count in enumerate(counts) if count] == list(range(0, 100, 4))
    assert set(counts) == {0, 10}
    assert all(step_counts(Sampler(), 100, 2, 200, 0))  # two pictures do not have enough at 25 steps


def test_ndtc_follows_the_clipped_normal_distribution_and_prefers_little_noise() -> None:
    steps, total = 50, 20000
    counts = np.array(step_counts(Sampler("ndtc"), steps, total, total, 3))
    times = np.clip(np.rint(np.random.default_rng(0).normal(0.4 * steps, 0.4 * steps, 200_000)), 0, steps - 1)
    expected = np.bincount(times.astype(int), minlength=steps)[::-1] / 200_000  # step 0 is the noisiest: the largest time
    assert abs(counts / total - expected).max() < 0.01
    assert counts[steps // 2 :].sum() > counts[: steps // 2].sum()


def test_tdac_prefers_dense_and_varied_steps() -> None:
    features = torch.zeros(6, 2)
    features[:4] = torch.tensor([1.0, 0.0]) + 0.01 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    features[4], features[5] = torch.tensor([0.0, 5.0]), torch.tensor([5.0, 5.0])
    dense = density_and_variety(features, radius=0.3, variety=0.0)
    assert dense == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]  # four neighbours, two loners
    varied = density_and_variety(features, radius=0.3, variety=1.0)
    # By hand: 1 - cos is 1 between the axes and 0.293 with the diagonal, so V is 1.29 (four times), 4.29, 1.46.
    np.testing.assert_allclose(varied, [1.0, 1.0, 1.0, 1.0, 1.0, 0.057], atol=0.03)


def test_tdac_without_differences_is_uniform() -> None:
    assert density_and_variety(torch.ones(5, 3), 0.3, 1.0) == [1.0] * 5


def test_shares_are_proportional_and_give_the_rest_to_others() -> None:
    assert shares([1.0, 2.0, 1.0], 8, 100) == [2, 4, 2]
    assert shares([1.0, 0.0, 1.0], 3, 100) == [2, 0, 1]
    assert shares([98.0, 1.0, 1.0], 10, 4) == [4, 3, 3]
    assert shares([1.0, 0.0, 0.0], 6, 3) == [3, 2, 1]


def test_pictures_of_a_step_are_different_ones_and_steps_differ() -> None:
    chosen = chosen_pictures([5, 5, 0, 10], 10, seed=1)
    assert [len(set(step)) for step in chosen] == [5, 5, 0, 10]
    assert chosen[0] != chosen[1]
    assert chosen == chosen_pictures([5, 5, 0, 10], 10, seed=1)
    assert chosen != chosen_pictures([5, 5, 0, 10], 10, seed=2)


def test_features_are_bounded_and_spread() -> None:
    long = torch.arange(3 << 18, dtype=torch.float64)
    assert len(feature(long)) == 1 << 18
    assert feature(long)[-1] == (3 << 18) - 3
    assert torch.equal(feature(torch.ones(2, 3)), torch.ones(6))


def test_a_name_that_is_almost_right_is_suggested() -> None:
    with pytest.raises(UserError, match="did you mean uniform"):
        Sampler("unifrom")


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.two(torch.relu(self.one(torch.layer_norm(x, (8,)))))


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.ModuleList([nn.Linear(8, 8)])
        self.blocks = nn.ModuleList([_Block() for _ in range(3)])

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.embed[0](latent)
        for block in self.blocks:
            x = block(x)
        return x


class _Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down_blocks, self.up_blocks = nn.ModuleList([_Block(), _Block()]), nn.ModuleList([nn.Linear(16, 8)])
        self.mid_block = _Block()

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        skip = self.down_blocks[1](self.down_blocks[0](latent))
        x: torch.Tensor = self.up_blocks[0](torch.cat([self.mid_block(skip), skip], -1))
        return x


@pytest.mark.parametrize(("model", "weight"), [(_Transformer(), "blocks.1.two"), (_Unet(), "mid_block.two")])
def test_the_middle_is_where_the_residual_of_the_middle_block_is_added(model: nn.Module, weight: str) -> None:
    graph = graph_of(model)
    nodes = {node.name: node for node in graph.module.graph.nodes}
    middle = nodes[middle_node(graph)]
    assert middle.target is torch.ops.aten.add.Tensor
    branch = next(n for n in middle.all_input_nodes if n.target is torch.ops.aten.linear.default)
    assert str(branch.args[1].target) == f"model.{weight}.weight" or str(branch.args[1].target) == f"{weight}.weight"


def test_a_denoiser_without_layers_has_no_middle() -> None:
    with pytest.raises(UserError, match="denoiser with layers"):
        middle_node(graph_of(nn.ReLU()))
