"""What the components of a bundle ask of a device, call by call: the file `workload.json`, from which any device's time and memory follow.

A build writes it next to the programs; bundles without it have no estimate. It changes nothing that runs.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dexport.errors import UserError
from dexport.runtime.bundle import Bundle
from dexport.runtime.manifest import Component, Manifest, ProgramEntry
from dexport.runtime.pipeline import load_program
from dexport.runtime.program import Instruction, Program, Run, reads, writes
from dexport.runtime.strict_json import parse_json, shown
from dexport.targets.catalogue import find
from dexport.targets.estimate import Estimate, Moment, Part, counted_milliseconds, peaks
from dexport.targets.formats import FORMATS
from dexport.targets.latency import Work
from dexport.targets.target import Target

WORKLOAD = "workload.json"
_MAX_BYTES = 16 << 20
_KEPT = 16
_KINDS = ("product", "attention", "traffic")

Sizes = tuple[tuple[str, int], ...]
"""Symbolic dimensions of a call and their sizes, sorted by name: (("batch", 2),)."""

Shapes = Mapping[str, Mapping[str, tuple[int | str, ...]]]
"""Component -> input -> shape."""


Weights = Mapping[str, tuple[int, Mapping[str, int]]]
"""Component -> parameters, and bytes by format."""


@dataclass(frozen=True)
class Load:
    """One way in which a component is called.

    Attributes:
        size: [height, width] of the program that calls it.
        work: operations, and how many there are of each; their names are left out.
    """

    component: str
    size: tuple[int, ...]
    sizes: Sizes
    arena_bytes: int
    work: tuple[tuple[int, Work], ...]


def load(component: str, size: tuple[int, ...], sizes: Sizes, arena_bytes: int, works: Iterable[Work]) -> Load:
    """A load with equal operations counted."""
    counts = Counter(Work("", work.kind, work.operations, work.bytes, work.format) for work in works)
    return Load(component, size, sizes, arena_bytes, tuple((count, work) for work, count in counts.items()))


def call_sizes(program: Program, call: Run, shapes: Shapes, batch: int) -> Sizes:
    """Symbolic dimensions of a call: the rows of what it is given."""
    found = {"batch": batch, "steps": program.steps}
    for name, shape in shapes[call.component].items():
        if shape and isinstance(shape[0], str):
            found[shape[0]] = sum(program.buffers[ref.buffer].rows.at(batch) // ref.parts for ref in call.inputs[name])
    return tuple(sorted(found.items()))


def calls(instructions: Iterable[tuple[str, Instruction]], program: Program, shapes: Shapes, batch: int) -> Counter[tuple[str, Sizes]]:
    """How often instructions of a program call each component with which sizes, in the order of their first calls."""
    runs = (instruction for _, instruction in instructions if isinstance(instruction, Run))
    return Counter((run.component, call_sizes(program, run, shapes, batch)) for run in runs)


def estimate(
    program: Program,
    shapes: Shapes,
    weights: Weights,
    loads: Iterable[Load],
    target: Target,
    batch: int,
) -> Estimate:
    """What one run of a program takes on a target.

    Args:
        weights: component -> parameters, and bytes by format.
        loads: of every call of the program.
        batch: pictures in the run.

    Raises:
        KeyError: the load of a call is missing.
    """
    known = {(one.component, one.sizes): one for one in loads if one.size == tuple(program.size)}
    times = {key: counted_milliseconds(one.work, target) for key, one in known.items()}
    counts = calls(program.instructions(), program, shapes, batch)
    mine = {name: {key: count for key, count in counts.items() if key[0] == name} for name in weights}
    parts = tuple(
        Part(name, *weights[name], max(known[key].arena_bytes for key in found), sum(found.values()), _time(found, times))
        for name, found in mine.items()
        if found
    )
    moments = tuple(_moments(program, shapes, known, batch))
    together, in_turn = peaks(moments, {part.name: part.weight_bytes for part in parts})
    in_loop = (("", instruction) for block in program.iterations for instruction in block)
    loop = _time(calls(in_loop, program, shapes, batch), times)
    return Estimate(
        target=target,
        parts=parts,
        pictures=batch,
        steps=program.steps,
        buffer_bytes=max(moment.buffer_bytes for moment in moments),
        together_bytes=together,
        in_turn_bytes=in_turn,
        step_milliseconds=None if loop is None else loop / max(program.steps - program.start_step, 1),
        milliseconds=_time(counts, times),
    )


def _time(counts: Mapping[tuple[str, Sizes], int], times: Mapping[tuple[str, Sizes], float | None]) -> float | None:
    """Milliseconds of calls; None if the device's speed is not known."""
    found = [(count, times[key]) for key, count in counts.items()]
    return None if any(time is None for _, time in found) else math.fsum(count * time for count, time in found if time is not None)


def _moments(program: Program, shapes: Shapes, known: Mapping[tuple[str, Sizes], Load], batch: int) -> Iterator[Moment]:
    """Every instruction; a buffer lives from the first that names it to the last, the request's from the start, results to the end."""
    instructions = [instruction for _, instruction in program.instructions()]
    first, last = dict.fromkeys(program.request, 0), dict[str, int]()
    for index, instruction in enumerate(instructions):
        for ref in (*reads(instruction), *writes(instruction)):
            first.setdefault(ref.buffer, index)
            last[ref.buffer] = index
    last |= dict.fromkeys(program.results, len(instructions) - 1)
    change = [0] * (len(instructions) + 1)
    for name, begin in first.items():
        bytes_ = math.prod(program.buffers[name].shape(batch)) * np.dtype(program.buffers[name].dtype).itemsize
        change[begin] += bytes_
        change[last.get(name, begin) + 1] -= bytes_
    alive = sum(math.prod(table.shape) * np.dtype(table.dtype).itemsize for table in program.tables.values())
    for instruction, more in zip(instructions, change):
        alive += more
        if isinstance(instruction, Run):
            key = (instruction.component, call_sizes(program, instruction, shapes, batch))
            yield Moment(instruction.component, known[key].arena_bytes, alive)
        else:
            yield Moment("", 0, alive)


def workload_json(loads: Iterable[Load]) -> bytes:
    """The bytes of `workload.json`."""
    document = [
        {
            "component": one.component,
            "size": list(one.size),
            "sizes": dict(one.sizes),
            "arena_bytes": one.arena_bytes,
            "work": [[count, work.kind, work.operations, work.bytes, work.format] for count, work in one.work],
        }
        for one in loads
    ]
    return (json.dumps(document, separators=(",", ":")) + "\n").encode()


def bundle_estimate(bundle: Bundle, entry: ProgramEntry, target: Target | None = None) -> Estimate | None:
    """What a run of a program takes, for as many pictures as one run can make; None if the bundle has no `workload.json`.

    Args:
        target: None for the bundle's own.

    Raises:
        UserError: `workload.json` is malformed, or lacks a component of the program.
    """
    manifest = bundle.manifest
    if WORKLOAD not in manifest.files:
        return None
    where = f"{bundle.path}: {WORKLOAD}"
    loads = _loads(parse_json(bundle.read_bytes(WORKLOAD), where, max_bytes=_MAX_BYTES), where)
    shapes = {name: {port: p.shape for port, p in c.inputs.items()} for name, c in manifest.components.items()}
    weights = {name: (c.parameters, _formats(name, c, manifest)) for name, c in manifest.components.items()}
    program = load_program(bundle, entry)
    try:
        return estimate(program, shapes, weights, loads, target or find(manifest.target), manifest.batch)
    except KeyError as error:
        raise _malformed(where, f"nothing for {shown(str(error.args[0]))}") from None


def _loads(document: Any, where: str) -> list[Load]:
    try:
        return [
            Load(
                str(entry["component"]),
                tuple(int(pixels) for pixels in entry["size"]),
                tuple(sorted((str(name), int(size)) for name, size in entry["sizes"].items())),
                int(entry["arena_bytes"]),
                tuple((int(count), _work(*work)) for count, *work in entry["work"]),
            )
            for entry in document
        ]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _malformed(where, shown(str(error))) from None


def _work(kind: Any, operations: Any, moved: Any, format: Any) -> Work:
    if kind not in _KINDS or format not in FORMATS or not (float(operations) >= 0 and float(moved) >= 0):
        raise ValueError(f"an operation {kind} of {format}")
    return Work("", kind, float(operations), float(moved), format)


def _malformed(where: str, got: str) -> UserError:
    return UserError(where, expected="the calls of every component", got=got, fix="build the bundle again")


def _formats(name: str, component: Component, manifest: Manifest) -> dict[str, int]:
    """Bytes by format: what the recipe says of quantized layers, and the rest."""
    found: Counter[str] = Counter()
    for layer in (manifest.recipe or {}).get("layers", ()):
        if isinstance(layer, dict) and layer.get("component") == name and layer.get("bits", _KEPT) < _KEPT:
            found[str(layer["weights"]).split()[0]] += round(layer["bits"] * layer["parameters"] / 8)
    rest = component.weight_bytes - found.total()
    return dict(found) | ({component.precision: rest} if rest > 0 else {})
