"""Pipelines at full size without their disk space: safetensors whose data are holes, which read as zeros."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def write_sparse_model(model: nn.Module, folder: Path, dtype: torch.dtype, *, shard_bytes: int | None = None) -> int:
    """Writes config.json and sparse weights of a (hollow) diffusers model; returns the bytes of its weights.

    Args:
        shard_bytes: begin another shard after this many bytes; None writes one file.
    """
    model.save_config(folder)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, parameter in model.named_parameters():
        size = parameter.numel() * dtype.itemsize
        if shard_bytes is not None and filled and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tuple(parameter.shape)
        filled += size
    names = [f"diffusion_pytorch_model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["diffusion_pytorch_model.safetensors"]
    else:
        index = {"metadata": {}, "weight_map": {key: name for name, shard in zip(names, shards) for key in shard}}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return sum(_write_shard(folder / name, shard, dtype) for name, shard in zip(names, shards))


def _write_shard(path: Path, shard: dict[str, tuple[int, ...]], dtype: torch.dtype) -> int:
    header: dict[str, object] = {}
    offset = 0
    for name, shape in shard.items():
        size = int(torch.Size(shape).numel()) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return offset
