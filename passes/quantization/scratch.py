"""A folder for what took long to compute: written once, read back one tensor at a time, so that a model's memory stays that of a layer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from dexport.passes.graph import Weight


@dataclass(frozen=True)
class Scratch:
    """The folder; whoever makes it removes it. Files are named after what they hold, so that one never replaces another."""

    folder: Path

    def keep(self, key: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, Weight]:
        """Writes tensors and returns them as weights: the same names -> where to read them. The key says what they are, for messages."""
        content = safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
        path = self.folder / f"{hashlib.sha256(content).hexdigest()[:24]}.safetensors"
        if not path.exists():
            path.write_bytes(content)
        return {name: _stored(path, key, name, tensor) for name, tensor in tensors.items()}


def _stored(path: Path, key: str, name: str, tensor: torch.Tensor) -> Weight:
    def load() -> torch.Tensor:
        with safetensors.safe_open(path, "pt") as file:
            found: torch.Tensor = file.get_tensor(name)
        return found

    return Weight(tuple(tensor.shape), tensor.dtype, load, f"{path}:{key}:{name}")
