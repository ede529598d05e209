"""Samplers: which (noisy latent, step) pairs reconstruction is fitted on.

    uniform     equal numbers for every c-th step (Q-Diffusion, arXiv 2302.04304)
    ndtc        diffusion times from a normal distribution, biased to little noise (PTQ4DM, arXiv 2211.15736: NDTC)
    tdac        steps whose features are dense and varied (EDA-DM, arXiv 2401.04585: TDAC)
    zero-data   as uniform, from Gaussian noise and prompts of our own, where the user has none

A latent always comes from the full-precision trajectory and is paired with the very step that it entered (PTQ4DM's published code pairs
sample k with time k without reversing the order). Samplers choose inputs for reconstruction only: ranges are collected at every step.

Notation: T steps, n_t pairs at step t, N pairs together, P pictures. Step 0 is the noisiest.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from dexport.errors import UserError
from dexport.passes.graph import Graph
from dexport.passes.quantization.sites import sites

NAMES = ("uniform", "ndtc", "tdac", "zero-data")
GENERIC_PROMPTS = (
    "",
    "a photograph of a person in a street",
    "an oil painting of a landscape with mountains and a lake",
    "a small animal on the grass, close up",
    "a bowl of fruit on a wooden table",
    "a red circle and a blue square on a white background",
    "a city at night with many lights",
    "an abstract pattern of many colours",
)
"""For "zero-data": nothing in particular, and many things."""

_MOST_UNIFORM_STEPS = 25  # as many as Q-Diffusion takes for Stable Diffusion
_MEASURED = 1 << 18  # numbers of a feature that are compared
_SALT_TIMES, _SALT_PICTURES = 1, 2


@dataclass(frozen=True)
class Sampler:
    """A sampler and its parameters.

    Attributes:
        name: one of NAMES.
        mean, deviation: of ndtc's distribution of times, as fractions of the schedule; PTQ4DM's code has 0.4 and 0.4.
        radius: of tdac: steps whose mean squared difference of features is at most this are neighbours (0.3 for latent diffusion).
        variety: of tdac: weight of variety against density (lambda = 1; 5 for Stable Diffusion).
    """

    name: str = "uniform"
    mean: float = 0.4
    deviation: float = 0.4
    radius: float = 0.3
    variety: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            near = difflib.get_close_matches(self.name, NAMES, 1, cutoff=0.4)
            fix = f"did you mean {near[0]}?" if near else "choose one of them"
            raise UserError("sampler", expected=", ".join(NAMES), got=repr(self.name), fix=fix)

    @property
    def needs_features(self) -> bool:
        """Whether `step_counts` needs features."""
        return self.name == "tdac"


def step_counts(sampler: Sampler, steps: int, pictures: int, total: int, seed: int, features: torch.Tensor | None = None) -> list[int]:
    """n_t for every step: they sum to N = min(total, T * P), none is larger than P, and they depend on nothing but the arguments.

    Args:
        features: float [T, F], of tdac: what the middle of the denoiser makes at every step, for some pictures.
    """
    total = min(total, steps * pictures)
    match sampler.name:
        case "ndtc":
            return _normal_counts(sampler, steps, pictures, total, seed)
        case "tdac":
            assert features is not None
            return shares(density_and_variety(features, sampler.radius, sampler.variety), total, pictures)
        case _:
            every = max(math.ceil(steps / _MOST_UNIFORM_STEPS), 1)
            while every > 1 and math.ceil(steps / every) * pictures < total:  # so few pictures need more of the steps
                every -= 1
            return shares([float(step % every == 0) for step in range(steps)], total, pictures)


def chosen_pictures(counts: Sequence[int], pictures: int, seed: int) -> list[list[int]]:
    """Which pictures give the pairs of every step: n_t different ones, drawn anew for each step."""
    orders = [np.random.default_rng([seed, _SALT_PICTURES, step]).permutation(pictures) for step in range(len(counts))]
    return [sorted(order[:count].tolist()) for order, count in zip(orders, counts)]


def shares(weights: Sequence[float], total: int, most: int) -> list[int]:
    """Whole numbers in proportion to the weights, none above `most`, that sum to `total`; what one cannot take goes to the others.

    Rounded by largest remainders, the earlier step first where they are equal. If those with a weight are full, the rest share.
    """
    steps = len(weights)
    assert total <= steps * most
    counts = [0] * steps
    while (left := total - sum(counts)) > 0:
        room = [step for step in range(steps) if counts[step] < most]
        heavy = {step: weights[step] for step in room if weights[step] > 0} or dict.fromkeys(room, 1.0)
        ideal = {step: left * weight / sum(heavy.values()) for step, weight in heavy.items()}
        whole = {step: min(int(part), most - counts[step]) for step, part in ideal.items()}
        for step, part in whole.items():
            counts[step] += part
        if not any(whole.values()):
            for step in sorted(ideal, key=lambda s: (-ideal[s], s))[:left]:
                counts[step] += 1
    return counts


def _normal_counts(sampler: Sampler, steps: int, pictures: int, total: int, seed: int) -> list[int]:
    """Times t ~ Normal(mean T, deviation T), clipped to [0, T-1]; step T-1-t. Steps that have all pictures are drawn again."""
    generator = np.random.default_rng([seed, _SALT_TIMES])
    counts = [0] * steps
    while (left := total - sum(counts)) > 0:
        times = generator.normal(sampler.mean * steps, sampler.deviation * steps, max(left, 64))
        for time in np.clip(np.rint(times), 0, steps - 1).astype(int)[:left]:
            counts[steps - 1 - time] += counts[steps - 1 - time] < pictures
    return counts


def density_and_variety(features: torch.Tensor, radius: float, variety: float) -> list[float]:
    """P_t = D_t + variety * V_t up to a factor, both scaled to [0, 1] over the steps (EDA-DM).

    D_t counts the steps with a mean squared difference of at most `radius`, V_t sums 1 - cos. Where all steps are alike, all get 1.

    Args:
        features: float [T, F].
    """
    flat = features.double()
    squares = flat.square().sum(1)
    products = flat @ flat.T
    differences = (squares[:, None] + squares - 2 * products).clamp(min=0) / flat.shape[1]
    lengths = squares.sqrt().clamp(min=1e-12)
    density = (differences <= radius).sum(1).double()
    varied = (1 - products / (lengths[:, None] * lengths)).sum(1)
    weights = _unit(density) + variety * _unit(varied)
    return [float(w) for w in weights] if float(weights.sum()) > 0 else [1.0] * len(weights)


def _unit(values: torch.Tensor) -> torch.Tensor:
    """Scaled to [0, 1]; zeros where all are equal."""
    span = float(values.max() - values.min())
    return (values - values.min()) / span if span > 1e-12 else torch.zeros_like(values)


def feature(value: torch.Tensor) -> torch.Tensor:
    """At most 2^18 evenly spaced numbers of a value, float32 [F]."""
    flat = value.detach().reshape(-1)
    return flat[:: max(1, math.ceil(flat.numel() / _MEASURED))].float().cpu()


def middle_node(graph: Graph) -> str:
    """The node with the output of the middle block, which tdac compares: of a U-Net the block of that name, else block L/2 of the L of the
    longest list of blocks.

    Raises:
        UserError: the graph has no layers.
    """
    found = sites(graph)
    if not found:
        raise UserError("sampler tdac", expected="a denoiser with layers", got="none", fix="choose another sampler")
    prefix = _middle_prefix([site.name for site in found])
    last = [site.node for site in found if site.name.startswith(prefix)][-1]
    nodes = {node.name: node for node in graph.module.graph.nodes}
    return _block_output(nodes[last]).name


def _middle_prefix(names: Sequence[str]) -> str:
    """What the names of the layers of the middle block begin with."""
    middle = [name for name in names if "mid_block." in name]
    if middle:
        return middle[0].partition("mid_block.")[0] + "mid_block."
    blocks: dict[str, set[int]] = {}
    for name in names:
        parts = name.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        if number:
            blocks.setdefault(".".join(parts[:number]), set()).add(int(parts[number]))
    if not blocks:
        return names[len(names) // 2]
    longest = max(blocks, key=lambda path: len(blocks[path]))
    order = sorted(blocks[longest])
    return f"{longest}.{order[(len(order) - 1) // 2]}."


def _block_output(node: fx.Node) -> fx.Node:
    """Follows a layer to the end of its residual branch: pointwise operations that alone read what comes before them."""
    while len(node.users) == 1:
        (user,) = node.users
        if user.op != "call_function" or torch.Tag.pointwise not in getattr(user.target, "tags", ()):
            break
        node = user
    return node
