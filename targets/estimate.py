"""What a plan takes on a device: bytes, milliseconds, and whether its memory is enough. Where the figures come from is others' business."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dexport.targets.latency import Work, estimable, total
from dexport.targets.target import Target

_GIB = 2**30

Fit = Literal["together", "in turn", "no", "unknown"]


@dataclass(frozen=True)
class Part:
    """A component.

    Attributes:
        weights: format -> bytes, scales included.
        arena_bytes: of values inside it, in its largest call.
        calls: in one run.
        milliseconds: of all these calls; None where the device's speed is not known.
    """

    name: str
    parameters: int
    weights: Mapping[str, int]
    arena_bytes: int
    calls: int
    milliseconds: float | None

    @property
    def weight_bytes(self) -> int:
        """Of all formats."""
        return sum(self.weights.values())


@dataclass(frozen=True)
class Moment:
    """An instruction of the sampling program, as far as memory goes.

    Attributes:
        component: that runs, "" for arithmetic between components.
        arena_bytes: that it needs while it runs.
        buffer_bytes: of the program's buffers that are alive.
    """

    component: str
    arena_bytes: int
    buffer_bytes: int


@dataclass(frozen=True)
class Estimate:
    """What one run takes.

    Attributes:
        pictures: made in the run.
        steps: of sampling.
        buffer_bytes: of the program's buffers at the worst moment, tables included.
        together_bytes: at the worst moment, with every component loaded all the time; activations share one arena.
        in_turn_bytes: the same with every component freed after its last use: text encoders before the loop, the denoiser after it.
        step_milliseconds, milliseconds: of one step and of the run; None where the device's speed is not known.
    """

    target: Target
    parts: tuple[Part, ...]
    pictures: int
    steps: int
    buffer_bytes: int
    together_bytes: int
    in_turn_bytes: int
    step_milliseconds: float | None
    milliseconds: float | None

    @property
    def available_bytes(self) -> int | None:
        """Memory of the device less what the system takes."""
        available = self.target.memory_available_gib
        return None if available is None else int(available * _GIB)

    @property
    def fit(self) -> Fit:
        """Whether the components fit all together, only in turn, or not at all."""
        available = self.available_bytes
        if available is None:
            return "unknown"
        if self.together_bytes <= available:
            return "together"
        return "in turn" if self.in_turn_bytes <= available else "no"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON; keys stay what they are."""
        target = self.target
        parts = [
            {
                "name": part.name,
                "parameters": part.parameters,
                "weights": dict(part.weights),
                "weight_bytes": part.weight_bytes,
                "arena_bytes": part.arena_bytes,
                "calls": part.calls,
                "ms": part.milliseconds,
            }
            for part in self.parts
        ]
        return {
            "target": target.id,
            "pictures": self.pictures,
            "steps": self.steps,
            "components": parts,
            "buffer_bytes": self.buffer_bytes,
            "peak_bytes": {"together": self.together_bytes, "in_turn": self.in_turn_bytes},
            "memory_bytes": None if target.memory_gib is None else int(target.memory_gib * _GIB),
            "system_bytes": None if target.memory_gib is None else int(target.memory_reserve_gib * _GIB),
            "available_bytes": self.available_bytes,
            "fits": self.fit,
            "step_ms": self.step_milliseconds,
            "ms": self.milliseconds,
            "latency_basis": estimable(target).reason,
        }


def peaks(moments: Sequence[Moment], weight_bytes: Mapping[str, int]) -> tuple[int, int]:
    """Most bytes of a run with all components loaded throughout, and with each loaded from its first to its last use."""
    first = {m.component: index for index, m in reversed(list(enumerate(moments)))}
    last = {m.component: index for index, m in enumerate(moments)}
    together = in_turn = 0
    for index, moment in enumerate(moments):
        working = moment.arena_bytes + moment.buffer_bytes
        together = max(together, working + sum(weight_bytes.values()))
        in_turn = max(in_turn, working + sum(size for name, size in weight_bytes.items() if first[name] <= index <= last[name]))
    return together, in_turn


def counted_milliseconds(works: Iterable[tuple[int, Work]], target: Target) -> float | None:
    """Time of operations, each so many times; None where the device's speed is not known."""
    return math.fsum(count * total((work,), target) for count, work in works) if estimable(target) else None
