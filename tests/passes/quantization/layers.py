"""Small graphs with every kind of site, and statistics of what flows into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import fx, nn

from dexport.exporter.capture import Input
from dexport.passes.graph import BATCH, Graph, Kind, run
from dexport.passes.quantization.sites import sites
from dexport.passes.quantization.statistics import BINS, SiteStatistics
from tests.passes.graphs import graph_of

TOKENS = CHANNELS = 16  # as many tokens as channels: what is per token must not be taken for per channel
LINEAR_INPUTS = (Input("latent", (BATCH, TOKENS, CHANNELS), torch.float32, Kind.LATENT),)
CONV_INPUTS = (Input("latent", (BATCH, 4, 6, 6), torch.float32, Kind.LATENT),)


class Linears(nn.Module):
    """Three layers that read one value, one that reads a concatenation, one without tokens, one with six inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave, self.flat = (nn.Linear(16, 16) for _ in range(3))
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 16)
        self.join, self.odd = nn.Linear(48, 16), nn.Linear(6, 16)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        h = self.enter(latent)
        g = h.sin()
        y = self.q(g) * self.k(g) + self.v(g)
        z = self.join(torch.cat([y, h, latent], -1))
        return self.leave(z.tanh() + self.odd(z[..., :6].cos()) + self.flat(z.mean(1))[:, None])


class Convolutions(nn.Module):
    """A plain convolution, one that reads a concatenation, and one in groups that does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1, stride=2)
        self.second, self.third = nn.Conv2d(12, 8, 1, bias=False), nn.Conv2d(16, 8, 3, groups=2)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        h = self.first(latent)
        y = self.second(torch.cat([h, latent[:, :, ::2, ::2]], 1))
        return self.third(torch.cat([h, y.relu()], 1))


def on_grid(module: nn.Module) -> nn.Module:
    """The module with weights that INT8 holds exactly, with a scale per output channel or per any choice of inputs: k/64, |k| <= 127."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if name.endswith("weight"):
            integers = torch.randint(-127, 128, parameter.shape, generator=generator)
            integers.flatten(1)[:, 0] = integers[0] = 127
            parameter.data = integers / 64
    return module


def linears() -> Graph:
    """Random weights, the same each time."""
    torch.manual_seed(0)
    return graph_of(Linears(), LINEAR_INPUTS)


def exact_linears() -> Graph:
    """Weights on the grid of INT8."""
    torch.manual_seed(0)
    return graph_of(on_grid(Linears()), LINEAR_INPUTS)


def convolutions() -> Graph:
    """Weights on the grid of INT8."""
    torch.manual_seed(0)
    return graph_of(on_grid(Convolutions()), CONV_INPUTS)


def latent(graph: Graph, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """An input for one of the graphs."""
    shape = [batch if size == BATCH else int(size) for size in graph.inputs[0].shape]
    return {"latent": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}


def watched(graph: Graph, inputs: Mapping[str, torch.Tensor], wanted: Callable[[fx.Node], str | None]) -> dict[str, torch.Tensor]:
    """The values of the nodes that `wanted` gives a name."""
    found: dict[str, torch.Tensor] = {}

    def watch(node: fx.Node, value: object) -> None:
        name = wanted(node)
        if name is not None and isinstance(value, torch.Tensor):
            found[name] = value

    run(graph, inputs, watch)
    return found


def entering(graph: Graph, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Site name -> what it reads."""
    by_node = watched(graph, inputs, lambda node: node.name)
    return {site.name: by_node[site.source] for site in sites(graph)}


def leaving(graph: Graph, inputs: Mapping[str, torch.Tensor], site: str) -> torch.Tensor:
    """What the last node of a quantized site gives."""
    return watched(graph, inputs, lambda node: node.meta.get("site"))[site]


def seen_of(steps: torch.Tensor, tokens: bool = True) -> SiteStatistics:
    """Statistics of activations [T, N, C], every token a row."""
    limits = torch.exp2(steps.abs().amax((1, 2)).log2().ceil())
    histograms = [torch.histc(x, BINS, -float(limit), float(limit)).long() for x, limit in zip(steps, limits, strict=True)]
    return SiteStatistics(
        count=torch.full((len(steps),), steps.shape[1]),
        minimum=steps.amin(1),
        maximum=steps.amax(1),
        mean=steps.mean(1),
        square=steps.square().mean(1),
        histogram=torch.stack(histograms),
        limit=limits,
        token_minimum=steps.amin(2) if tokens else None,
        token_maximum=steps.amax(2) if tokens else None,
        rows=steps.flatten(0, 1),
        row_steps=torch.arange(len(steps)).repeat_interleave(steps.shape[1]),
    )


def observed(graph: Graph, inputs: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, SiteStatistics]:
    """Site name -> statistics of one picture at every step; sites of one source share an object."""
    steps = [entering(graph, each) for each in inputs]
    by_source: dict[str, SiteStatistics] = {}
    for site in sites(graph):
        values = torch.stack([each[site.name][0] for each in steps])
        if site.kind == "conv":
            values = values.flatten(2).transpose(1, 2)
        by_source.setdefault(
            site.source, seen_of(values if values.dim() == 3 else values[:, None], values.dim() == 3 and site.kind == "linear")
        )
    return {site.name: by_source[site.source] for site in sites(graph)}
