"""Capture keeps names, types and kinds; models that cannot be captured are in test_components.py."""

from __future__ import annotations

import torch
from torch import nn

from dexport.exporter.capture import Input, capture
from dexport.passes.graph import BATCH, Kind, run
from tests.passes.graphs import weight_of


class Model(nn.Module):
    """Takes a named input and any number of others; returns two results."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, latent: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer(latent), rest[0] + rest[1].sum()


INPUTS = (
    Input("latent", (BATCH, 5, 3), torch.float32, Kind.LATENT),
    Input("ids", (BATCH,), torch.int64, Kind.PROMPT),
    Input("timestep", (1,), torch.float32, Kind.STEP),
)


def test_ports_say_what_they_carry() -> None:
    graph = capture("model", Model().requires_grad_(False), INPUTS, ("y", "z"), weight_of)
    assert [(p.name, p.dtype, p.shape, p.kinds) for p in graph.inputs] == [(i.name, i.dtype, i.shape, frozenset([i.kind])) for i in INPUTS]
    assert [(p.name, p.dtype, p.shape) for p in graph.outputs] == [
        ("y", torch.float32, (BATCH, 5, 2)),
        ("z", torch.float32, (BATCH,)),
    ]
    assert {name: weight.shape for name, weight in graph.weights.items()} == {"layer.weight": (2, 3), "layer.bias": (2,)}


def test_every_batch_runs() -> None:
    model = Model().requires_grad_(False)
    graph = capture("model", model, INPUTS, ("y", "z"), weight_of)
    for batch in (1, 2, 65):
        latent, ids, timestep = torch.randn(batch, 5, 3), torch.arange(batch), torch.tensor([0.5])
        found = run(graph, {"latent": latent, "ids": ids, "timestep": timestep})
        wanted = model(latent, ids, timestep)
        assert torch.allclose(found["y"], wanted[0]) and torch.equal(found["z"], wanted[1])


def test_an_example_has_two_rows() -> None:
    assert INPUTS[0].example().shape == (2, 5, 3)
    assert INPUTS[2].example().tolist() == [1.0]
