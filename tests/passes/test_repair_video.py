"""The repairs that video transformers and their autoencoder need: rotary embeddings written in place, exact nearest upsampling."""

import pytest
import torch
from torch import nn

from dexport.exporter.capture import Input, capture
from dexport.passes.graph import BATCH, Graph, Kind, Weight, run
from dexport.passes.repair import repair

aten = torch.ops.aten


class Interleaved(nn.Module):
    """Writes halves into every second place, as WanAttnProcessor does."""

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        first, second = latent.unflatten(-1, (-1, 2)).unbind(-1)
        out = torch.empty_like(latent)
        out[..., 0::2] = first.double() * 2
        out[..., 1::2] = first + second
        return out.type_as(latent)


class Partial(nn.Module):
    """Writes one half only: not a stack."""

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(latent)
        out[..., 0::2] = latent[..., 1::2]
        return out


class Enlarged(nn.Module):
    """Exact nearest upsampling by `factor`."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=factor, mode="nearest-exact")

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.up(latent.unsqueeze(1))


class Sum(nn.Module):
    """Takes any number of tensors after the first."""

    def forward(self, latent: torch.Tensor, *more: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return latent + sum(more), *more


def _no_weight(path: str, tensor: torch.Tensor) -> Weight:
    raise AssertionError(path)


def _captured(module: nn.Module, inputs: int = 1) -> Graph:
    ports = [Input(f"x{i}", (BATCH, 3, 8), torch.float32, Kind.LATENT) for i in range(inputs)]
    return capture("m", module, ports, [f"y{i}" for i in range(inputs)], _no_weight)


def _targets(graph: Graph) -> set[object]:
    return {node.target for node in graph.module.graph.nodes if node.op == "call_function"}


def test_values_written_to_even_and_odd_places_become_a_stack() -> None:
    graph, x = _captured(Interleaved()), torch.randn(3, 3, 8)
    repaired = repair(graph)
    assert aten.slice_scatter.default in _targets(graph)
    assert not _targets(repaired) & {aten.slice_scatter.default, aten.copy.default, aten.empty_like.default, aten.type_as.default}
    assert torch.equal(run(repaired, {"x0": x})["y0"], Interleaved()(x))


def test_a_half_written_tensor_is_left_alone() -> None:
    repaired, x = repair(_captured(Partial())), torch.randn(2, 3, 8)
    assert aten.slice_scatter.default in _targets(repaired)
    assert torch.equal(run(repaired, {"x0": x})["y0"], Partial()(x))


def test_capture_takes_a_variable_number_of_inputs() -> None:
    graph = repair(_captured(Sum(), inputs=3))
    values = {f"x{i}": torch.full((2, 3, 8), float(i + 1)) for i in range(3)}
    assert [port.shape[0] for port in graph.outputs] == [BATCH] * 3
    assert torch.equal(run(graph, values)["y0"], torch.full((2, 3, 8), 6.0))


@pytest.mark.parametrize(("factor", "left"), [(2.0, False), (3.0, False), (1.5, True)])
def test_exact_nearest_becomes_nearest_where_the_factor_is_whole(factor: float, left: bool) -> None:
    repaired, x = repair(_captured(Enlarged(factor))), torch.randn(2, 3, 8)
    assert (aten._upsample_nearest_exact2d.vec in _targets(repaired)) is left
    assert torch.equal(run(repaired, {"x0": x})["y0"], Enlarged(factor)(x))
