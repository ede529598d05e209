"""A component of a pipeline directory becomes a Graph: built hollow, captured, its weights found in the checkpoint, repaired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from dexport.errors import Failure
from dexport.exporter.capture import capture
from dexport.exporter.hollow import hollow_model
from dexport.exporter.pipelines.family import Component
from dexport.exporter.weights import Checkpoint, match_names, open_checkpoint, weight_of
from dexport.passes.graph import Graph, Weight
from dexport.passes.repair import repair

_INNER = "model."  # wrappers hold the bare model in the attribute `model`
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_KINDS = ("weight", "bias")


def load_component(pipeline: Path, component: Component, dtype: torch.dtype) -> Graph:
    """Captures one component; its weights are read later, one at a time, from `pipeline / component.folder`.

    Parameters that the captured forward does not touch (the encoder half of an autoencoder) need not be in the checkpoint. Buffers that
    the model saves are read; other tensors of the checkpoint are ignored.

    Args:
        pipeline: the pipeline directory.
        component: what the family's adapter says of it.
        dtype: of the weights and activations, unless the component is `wide`.

    Raises:
        UserError: the checkpoint lacks a parameter, has it in another shape, or cannot be read.
        Failure: the model cannot be captured.
    """
    folder = pipeline / component.folder
    model = hollow_model(component.construct, torch.float32 if component.wide else dtype)
    checkpoint = _renamed(open_checkpoint(folder), model)
    _read_buffers(model, checkpoint)
    graph = capture(component.name, component.wrap(model), component.inputs, component.outputs, _unread)
    hollow = {name.removeprefix(_INNER): weight for name, weight in graph.used_weights().items()}
    stored = match_names(hollow, checkpoint, _tied(model), str(folder))
    weights = {_INNER + name: weight_of(checkpoint[stored[name]], stored[name], hollow[name].shape, hollow[name].dtype) for name in hollow}
    return repair(replace(graph, weights=weights))


def _renamed(checkpoint: Checkpoint, model: nn.Module) -> Checkpoint:
    """The checkpoint with the names of today for attention blocks that diffusers once called differently (autoencoders before 0.18)."""
    blocks = [path for path, module in model.named_modules() if getattr(module, "_from_deprecated_attn_block", False)]
    today = {f"{block}.{old}.{kind}": f"{block}.{new}.{kind}" for block in blocks for old, new in _OLD_ATTENTION.items() for kind in _KINDS}
    return {today.get(name, name): stored for name, stored in checkpoint.items()}


def _read_buffers(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Fills buffers that the model saves with its weights: statistics of batch norms, position tables that were stored rounded."""
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in saved and name in checkpoint and checkpoint[name].shape == tuple(buffer.shape):
            buffer.copy_(checkpoint[name].read())


def _unread(path: str, tensor: torch.Tensor) -> Weight:
    """Shape and dtype of a parameter whose place in the checkpoint is not known yet."""

    def load() -> torch.Tensor:
        raise Failure(path, expected="weights to be read after capture", got="a read while capturing", fix="report this")

    return Weight(tuple(tensor.shape), tensor.dtype, load, path)


def _tied(model: nn.Module) -> Mapping[str, str]:
    """Parameters that share one stored tensor: name -> the name it is stored under."""
    tied = getattr(model, "all_tied_weights_keys", None)
    return tied if isinstance(tied, Mapping) else {}
