"""What every builder of engines is to `finalize`: a command to run in a process of its own, and a way to read what came of it.

A process of its own, because a compiler that crashes or is killed for its memory must not take the log, the state and the
engines that are already finished with it, and because the system then counts its memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dexport.runtime.device import Device
from dexport.runtime.manifest import Variant

Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, usual and largest shape of an input; a compiler tunes for the usual one."""
Profile = Mapping[str, Range]
"""A range for every input with an unknown size; one engine may have several such profiles."""


@dataclass(frozen=True)
class Layer:
    """One operation of an engine as its compiler made it.

    Attributes:
        nodes: names of the ONNX nodes that went into it.
        kind: as the compiler calls it.
        precisions: number formats of what it computes with, such as {"int8"}.
        multiplies: whether it is a matrix product, convolution or attention.
    """

    nodes: frozenset[str]
    kind: str
    precisions: frozenset[str]
    multiplies: bool


class Builder(Protocol):
    """Makes engines of one format."""

    @property
    def format(self) -> str:
        """Of the finished variant."""

    @property
    def native(self) -> bool:
        """Whether machine code comes out."""

    @property
    def tools(self) -> Mapping[str, str]:
        """What decides, beside the model and the options, what comes out: versions of the compiler, say."""

    def check(self, device: Device) -> None:
        """Refuses a device for which the kit was not made; raises UserError."""

    def options(self, profiles: Sequence[Profile]) -> tuple[str, ...]:
        """The part of the command that changes what comes out."""

    def command(self, onnx: Path, folder: Path, name: str, options: Sequence[str]) -> list[str]:
        """Builds `name` in `folder`, which exists and is empty."""

    def files(self, name: str) -> tuple[str, ...]:
        """Files of the engine in that folder, the one that a backend loads first."""

    def layer_files(self, name: str) -> tuple[str, ...]:
        """Files in that folder that `layers` reads; what else lies there is for people only."""

    def layers(self, folder: Path, name: str) -> list[Layer]:
        """What the compiler made of the model; nothing where only running it can tell."""

    def memory_needed(self, weight_bytes: int) -> int:
        """Bytes of free memory that a build takes, from the size of the model's weights; an estimate."""


def profiles_to_json(profiles: Sequence[Profile]) -> dict[str, list[dict[str, list[list[int]]]]] | None:
    """How a variant keeps its profiles (see `Variant.profiles`); None for a model whose sizes are all fixed."""
    if not profiles:
        return None
    return {"ranges": [{name: [list(shape) for shape in shapes] for name, shapes in profile.items()} for profile in profiles]}


def profiles_of(variant: Variant) -> list[Profile]:
    """The profiles of a variant."""
    if variant.profiles is None:
        return []
    return [{name: _range(shapes) for name, shapes in profile.items()} for profile in variant.profiles["ranges"]]


def _range(shapes: Sequence[Sequence[int]]) -> Range:
    low, usual, high = (tuple(int(size) for size in shape) for shape in shapes)
    return low, usual, high
