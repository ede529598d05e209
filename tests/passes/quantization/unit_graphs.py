"""A denoiser of two residual blocks with step and prompt inside, split as the exporter splits it, and samples of its loop."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import nn
from torch.nn import functional

from dexport.passes.graph import BATCH, Graph, Kind, run
from dexport.passes.hoist import Hoisted, hoist
from dexport.passes.quantization.decide import activation_values
from dexport.passes.quantization.parts import RealWeight, quantized_part
from dexport.passes.quantization.recipe import ActivationSpec, WeightSpec
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.sites import sites
from dexport.passes.quantization.unit import Indexed
from dexport.passes.quantization.values import ActivationValues, SiteValues
from tests.passes.graphs import LATENT, PROMPT, TIMESTEP, graph_of

STEPS, PROMPTS = 3, 2


class Attention(nn.Module):
    """Queries from the latent, keys and values from the prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        return self.to_out(functional.scaled_dot_product_attention(self.to_q(x), self.to_k(prompt), self.to_v(prompt)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.norm, self.up, self.down = Attention(), nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor, modulation: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(x, prompt)
        shift, gate = modulation[:, None].chunk(2, -1)
        return x + gate * self.down(functional.gelu(self.up(self.norm(x) + shift)))


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time_embedding = nn.Linear(1, 16)
        self.proj_in, self.proj_out = nn.Linear(8, 8), nn.Linear(8, 8)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, latent: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        modulation = self.time_embedding((timestep / 1000).expand(latent.shape[0])[:, None])
        x = self.proj_in(latent)
        for block in self.blocks:
            x = block(x, modulation, prompt)
        return self.proj_out(x)


@cache
def denoiser() -> Hoisted:
    """The split denoiser."""
    torch.manual_seed(0)
    return hoist(graph_of(Denoiser(), (LATENT, TIMESTEP, PROMPT)))


def samples(count: int = 12) -> tuple[dict[str, Indexed], torch.Tensor]:
    """What enters the loop in samples of mixed steps and prompts, and the step of each, int64 [count]."""
    split, generator = denoiser(), torch.Generator().manual_seed(1)
    timesteps = torch.tensor([900.0, 400.0, 20.0])
    assert split.table is not None and split.prompt is not None
    values = run(split.table, {"timestep": timesteps}) | run(split.prompt, {"prompt": torch.randn(PROMPTS, 5, 8, generator=generator)})
    steps, prompts = torch.arange(count) % STEPS, torch.arange(count) // 2 % PROMPTS
    latents = torch.randn(count, 6, 8, generator=generator)

    def entry(name: str, kinds: frozenset[Kind], shape: tuple[int | str, ...]) -> Indexed:
        if Kind.LATENT in kinds:
            return Indexed(latents, torch.arange(count))
        assert shape[0] == (1 if kinds == {Kind.STEP} else BATCH)
        return Indexed(values[name], steps if kinds == {Kind.STEP} else prompts)

    return {p.name: entry(p.name, p.kinds, p.shape) for p in split.loop.inputs}, steps


def row_inputs(entering: dict[str, Indexed], row: int) -> dict[str, torch.Tensor]:
    """What the loop gets at one row, with a batch of 1."""
    return {name: found.rows(torch.tensor([row])) for name, found in entering.items()}


def decided(
    graph: Graph, scratch: Scratch, format: str = "int4", activations: ActivationValues | None = None, skip: str = "proj"
) -> dict[str, SiteValues]:
    """Nearest rounding, a scale per channel, of every site whose name has no `skip`."""
    found = {}
    for site in sites(graph):
        if skip not in site.name:
            own = graph.weights[site.weight]
            real = RealWeight(own.load, own.shape, f"{site.name} {format}")
            found[site.name] = SiteValues((quantized_part(real, WeightSpec(format=format), activations, scratch, torch.float32),))
    return found


def static(scale: float, format: str = "int8") -> ActivationValues:
    """A constant scale."""
    return replace(activation_values(ActivationSpec(format=format, mode="dynamic"), None), mode="static", scale=torch.tensor(scale))


def table(*scales: float, format: str = "int8") -> ActivationValues:
    """A scale per step."""
    return replace(static(1.0, format), mode="table", scale=torch.tensor(scales))
