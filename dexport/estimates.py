"""An estimate as lines of text, for `dexport estimate`, `build --dry-run` and `inspect`."""

from __future__ import annotations

from collections.abc import Iterator

from dexport.columns import amount, columns
from dexport.targets.estimate import Estimate, Part
from dexport.targets.latency import estimable

_GIB = 2**30
_FITS = {
    "together": "fits",
    "in turn": "fits only with components loaded in turn",
    "no": "does not fit",
    "unknown": "the memory of the machine is not known",
}


def estimate_lines(found: Estimate, title: str) -> Iterator[str]:
    """Components, memory and time of a run.

    Args:
        title: what is run: the size, where there are several.
    """
    pictures = "1 picture" if found.pictures == 1 else f"{found.pictures} pictures"
    yield f"estimate   {found.target.id}, {title}, {found.steps} steps, {pictures} in one run"
    yield from columns([_row(part) for part in found.parts], indent="  ")
    yield f"memory     {_memory(found)}"
    yield f"time       {estimate_time(found)}"


def estimate_time(found: Estimate) -> str:
    """Time of a step and of the run, or why it is not known."""
    if found.step_milliseconds is None or found.milliseconds is None:
        return f"not estimated: {estimable(found.target).reason}"
    return f"{_milliseconds(found.step_milliseconds)} a step, {_milliseconds(found.milliseconds)} in all ({estimable(found.target).reason})"


def _row(part: Part) -> tuple[str, ...]:
    weights = ", ".join(f"{format} {amount(size, 'B')}" for format, size in part.weights.items())
    return (
        part.name,
        f"{amount(part.parameters)} parameters",
        f"weights {amount(part.weight_bytes, 'B')} ({weights})",
        f"activations {amount(part.arena_bytes, 'B')}",
        "1 call" if part.calls == 1 else f"{part.calls} calls",
        "" if part.milliseconds is None else _milliseconds(part.milliseconds),
    )


def _memory(found: Estimate) -> str:
    together, in_turn = (f"{size / _GIB:.3g} GiB" for size in (found.together_bytes, found.in_turn_bytes))
    needs = (
        f"{together}, or {in_turn} with each component freed after its last use; {amount(found.buffer_bytes, 'B')} of it sampling buffers"
    )
    if found.available_bytes is None:
        return f"{needs}; {_FITS[found.fit]}"
    target = found.target
    left = f"{target.memory_gib:g} GiB less {target.memory_reserve_gib:g} for the system leave {found.available_bytes / _GIB:.3g}"
    return f"{needs}; {left}: {_FITS[found.fit]}"


def _milliseconds(time: float) -> str:
    return f"{time / 1000:.3g} s" if time >= 1000 else f"{time:.3g} ms"
