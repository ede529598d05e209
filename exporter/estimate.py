"""What a build takes on its target, before anything is built, and the nearest plan that fits where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from dexport.errors import UserError
from dexport.exporter.effective_recipe import effective_recipe
from dexport.exporter.options import Size
from dexport.exporter.plan import Plan
from dexport.exporter.program import GuidanceUse, Layout, outline
from dexport.exporter.solver import Solver, probe
from dexport.exporter.split import Split, split_pipeline
from dexport.exporter.workload import Workload, planned_treatments
from dexport.passes.quantization.recipe_file import recipe_names
from dexport.runtime.program import Program
from dexport.runtime.workload import Load, estimate
from dexport.targets.estimate import Estimate

Report = Callable[[str, float | None], None]
_SHARES = (0.75, 0.5, 0.25)
_SMALL = "int4-weight-only"
"""The recipe for text encoders that must be small: they run once, so that only their bytes matter."""


@dataclass(frozen=True)
class Prepared:
    """A plan with everything that is known without reading a weight.

    Attributes:
        solvers: (size, steps) -> how the scheduler moves.
        splits: the captured graphs, one per size.
    """

    plan: Plan
    solvers: dict[tuple[Size, int], Solver]
    splits: tuple[Split, ...]

    @cached_property
    def outlines(self) -> tuple[Outline, ...]:
        """One per size, of runs with the first number of steps and as many pictures as the build allows."""
        return tuple(outlined(self.plan, split, self.solvers[split.size, self.plan.steps[0]]) for split in self.splits)


def prepare(decided: Plan, report: Report = lambda stage, done: None) -> Prepared:
    """Captures what a plan needs; nothing is written and no weight is read.

    Raises:
        UserError: a checkpoint does not fit its configuration.
        Failure: a component cannot be captured.
    """
    solvers = {(size, n): probe(decided.scheduler, decided.schedule(size, n)) for size in decided.sizes for n in decided.steps}
    splits = []
    for index, size in enumerate(decided.sizes):
        report(f"capture {size[0]}x{size[1]}", index / len(decided.sizes) * 0.1)
        splits.append(split_pipeline(decided, size, [solvers[size, n] for n in decided.steps]))
    return Prepared(decided, solvers, tuple(splits))


@dataclass(frozen=True)
class Outline:
    """A split with the program that runs it and the loads of its calls, for trying out other weights."""

    split: Split
    program: Program
    workload: Workload
    loads: tuple[Load, ...]

    def estimate(self, decided: Plan) -> Estimate:
        """What a run takes with the weights of a plan; times are those of the plan that the outline was made for."""
        workload = replace(self.workload, treatments=planned_treatments(self.split, decided.recipe, decided.options))
        weights = workload.weights(decided.storage)
        return estimate(self.program, workload.shapes, weights, self.loads, decided.target, decided.options.batch)


def outlined(decided: Plan, split: Split, solver: Solver) -> Outline:
    """The outline of a plan at the size of a split.

    Raises:
        UserError: the recipe names a layer that is not there.
    """
    workload = Workload(split, planned_treatments(split, decided.recipe, decided.options))
    layout = Layout(decided.pipeline, split.encoders, split.denoiser, {graph.name: graph for graph in split.decoders})
    options = decided.options
    guidance = GuidanceUse(decided.guided, decided.guidance, options.guidance_interval, options.guidance_batching)
    program = outline(layout, solver, split.size, guidance, "planned")
    return Outline(split, program, workload, tuple(workload.loads(program, options.batch)))


def require_memory(prepared: Prepared) -> None:
    """Refuses a build that its target cannot run even with components loaded in turn.

    Raises:
        UserError: with the bytes, and the nearest plan that fits.
    """
    decided = prepared.plan
    if decided.target.memory_gib is None:
        return
    for made in prepared.outlines:
        found = made.estimate(decided)
        if found.fit == "no":
            raise _too_large(decided, made, found)


def _too_large(decided: Plan, made: Outline, found: Estimate) -> UserError:
    assert found.available_bytes is not None
    target, (height, width) = found.target, made.split.size
    largest = max(found.parts, key=lambda part: part.weight_bytes)
    left = f"{target.memory_gib:g} GiB less {target.memory_reserve_gib:g} for the system"
    got = (
        f"{_gib(found.in_turn_bytes)} at {height}x{width} with components loaded in turn, {_gib(largest.weight_bytes)} of it {largest.name}"
    )
    return UserError(
        f"memory of {target.id}", expected=f"at most {_gib(found.available_bytes)} ({left})", got=got, fix=nearest(decided, made)
    )


def nearest(decided: Plan, made: Outline) -> str:
    """What to change so that a plan fits, in words: the recipe that keeps most bytes, else a smaller size with the smallest recipe."""
    trials = [(made.estimate(trial), trial, flags) for trial, flags in _recipes(decided)]
    fitting = [(found, flags) for found, _, flags in trials if found.fit != "no"]
    if fitting:
        found, flags = max(fitting, key=lambda one: one[0].in_turn_bytes)
        return f"add {flags}: {_gib(found.in_turn_bytes)}{_HOW[found.fit]}"
    smallest = min(trials, key=lambda one: one[0].in_turn_bytes, default=None)
    for share in _SHARES:
        size = _shrunk(made.split.size, share, decided.pipeline.size_multiple)
        solver = probe(decided.scheduler, decided.schedule(size, decided.steps[0]))
        smaller = outlined(decided, split_pipeline(decided, size, [solver]), solver)
        for trial, flags in ((decided, ""), *((smallest[1:],) if smallest else ())):
            if (found := smaller.estimate(trial)).fit != "no":
                return f"use --size {size[0]}x{size[1]} {flags}".rstrip() + f": {_gib(found.in_turn_bytes)}{_HOW[found.fit]}"
    return "choose a device with more memory: no recipe or size that dexport knows fits"


_HOW = {"together": "", "in turn": ", with components loaded in turn"}


def _recipes(decided: Plan) -> Iterator[tuple[Plan, str]]:
    """The plan with each recipe that the target computes exactly, alone and with small text encoders, and the flags that ask for it."""
    for name in recipe_names():
        for parts in ({}, {"text_encoder": _SMALL}):
            unbudgeted = replace(decided.options, budget_bytes=None, average_bits=None, budget_ms=None)
            options = replace(unbudgeted, recipe=name, modelopt=None, parts=parts, skip=())
            try:
                trial = replace(decided, options=options, recipe=effective_recipe(options, decided.target))
            except UserError:
                continue
            yield trial, " ".join([f"--recipe {name}", *(f"--component {part}={other}" for part, other in parts.items())])


def _shrunk(size: Size, share: float, multiple: int) -> Size:
    height, width = (max(multiple, round(pixels * share / multiple) * multiple) for pixels in size)
    return height, width


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
