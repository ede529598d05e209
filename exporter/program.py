"""Sampling programs: encoders, preludes, guidance, solver and decoder composed into one list of instructions.

Rows: with classifier-free guidance every prompt buffer holds the unconditional rows first, then the conditional ones. A guided call of
the denoiser sees both halves (in one call, or in turn), an unguided one the conditional half only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dexport.exporter.pipelines.family import Pipeline, Size
from dexport.exporter.solver import Solver
from dexport.exporter.solver_program import SAMPLE, begin_instructions, model_input, solver_buffers, solver_instructions, solver_tables
from dexport.passes.graph import BATCH, STEPS, Graph, Kind, Port, run
from dexport.passes.hoist import Hoisted
from dexport.runtime.program import Buffer, Coefficient, Index, Instruction, Linear, Program, Ref, Rows, Run, Table

GUIDANCE_SCALE = "guidance_scale"
_TIMESTEPS = "timesteps"
_NUMPY = {torch.float32: "float32", torch.float16: "float16", torch.int64: "int64", torch.uint8: "uint8", torch.bool: "bool"}


@dataclass(frozen=True)
class Layout:
    """What a program is composed of.

    Attributes:
        encoders: text encoders, in the order they run.
        denoiser: the split denoiser.
        decoders: the components of `pipeline.decode`, by name.
    """

    pipeline: Pipeline
    encoders: tuple[Graph, ...]
    denoiser: Hoisted
    decoders: Mapping[str, Graph]


@dataclass(frozen=True)
class GuidanceUse:
    """How a program guides: `guided` programs carry both halves; `interval` is the part of the steps in which guidance is on."""

    guided: bool
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    batched: bool = True

    def on(self, call: int, calls: int) -> bool:
        """Whether a call is guided; an interval covers calls int(first * calls) up to int(last * calls), as diffusers' guiders count."""
        low, high = self.interval
        return self.guided and int(low * calls) <= call < int(high * calls)


Tables = dict[str, npt.NDArray[np.generic]]


def compose(layout: Layout, solver: Solver, size: Size, guidance: GuidanceUse, name: str) -> tuple[Program, Tables]:
    """A program and its tables for one size and one solver."""
    return _Composer(layout, solver, size, guidance, name, _tables(layout.denoiser, solver)).program()


def outline(layout: Layout, solver: Solver, size: Size, guidance: GuidanceUse, name: str) -> Program:
    """The program alone: no table is evaluated, so that no weight is read."""
    return _Composer(layout, solver, size, guidance, name, _blank_tables(layout.denoiser, solver)).program()[0]


class _Composer:
    def __init__(self, layout: Layout, solver: Solver, size: Size, guidance: GuidanceUse, name: str, tables: Tables) -> None:
        self._layout, self._solver, self._size, self._guidance, self._name = layout, solver, size, guidance, name
        self._parts = 2 if guidance.guided else 1
        self._calls = len(solver.timesteps)
        self._buffers: dict[str, Buffer] = {}
        self._request: list[str] = []
        self._tables = tables | solver_tables(solver)

    def program(self) -> tuple[Program, Tables]:
        pipeline, solver = self._layout.pipeline, self._solver
        sizes = pipeline.latent_shape(self._size)
        self._buffers |= solver_buffers(solver, sizes)
        begin = (*self._encode(), *self._prelude(), *begin_instructions(solver))
        iterations = tuple(self._iteration(call) for call in range(self._calls))
        end = self._decode()
        parameters = {GUIDANCE_SCALE: self._guidance.scale} if self._guidance.guided else {}
        program = Program(
            name=self._name,
            scheduler=solver.scheduler,
            steps=solver.schedule.steps,
            size=self._size,
            start_step=solver.schedule.start,
            timesteps=solver.timesteps,
            parameters=parameters,
            tables={n: Table(str(t.dtype), t.shape) for n, t in self._tables.items()},
            buffers=self._buffers,
            request=tuple(self._request),
            results=pipeline.results,
            begin=begin,
            iterations=iterations,
            end=end,
        )
        return program, self._tables

    def _encode(self) -> list[Instruction]:
        """Runs the text encoders; their inputs are filled by the request."""
        instructions: list[Instruction] = []
        for encoder in self._layout.encoders:
            for port in encoder.inputs:
                self._ask(port)
            instructions.append(self._run(encoder, {p.name: (Ref(p.name),) for p in encoder.inputs}, encoder.outputs))
        return instructions

    def _prelude(self) -> list[Instruction]:
        """Runs what hoisting moved out of the loop. Prompt inputs that no encoder makes are filled by the request."""
        denoiser = self._layout.denoiser
        instructions: list[Instruction] = []
        for graph in (denoiser.prompt, denoiser.schedule, denoiser.loop):
            for port in graph.inputs if graph else ():
                made_here = port.name.startswith(("prompt_", "step_values", "schedule_values"))
                if Kind.PROMPT in port.kinds and port.name not in self._buffers and not (graph is denoiser.loop and made_here):
                    self._ask(port)
        if denoiser.prompt is not None:
            inputs = {p.name: (Ref(p.name),) for p in denoiser.prompt.inputs}
            instructions.append(self._run(denoiser.prompt, inputs, denoiser.prompt.outputs))
        if denoiser.schedule is not None:
            self._buffers[_TIMESTEPS] = Buffer("float32", Rows(self._calls))
            instructions.append(Index(Ref(_TIMESTEPS), _TIMESTEPS, 0))
            inputs = {p.name: (Ref(_TIMESTEPS if Kind.STEP in p.kinds else p.name),) for p in denoiser.schedule.inputs}
            instructions.append(self._run(denoiser.schedule, inputs, denoiser.schedule.outputs))
        return instructions

    def _iteration(self, call: int) -> tuple[Instruction, ...]:
        before, latent = model_input(self._solver, call)
        instructions: list[Instruction] = [*self._step_values(call), *before]
        loop = self._layout.denoiser.loop
        output = loop.outputs[0].name
        if not self._guidance.on(call, self._calls):
            half = self._parts - 1
            self._declare(output, 1, loop.outputs[0])
            instructions.append(self._call(call, latent, (half,), (Ref(output),)))
            terms: list[tuple[Ref, Coefficient]] = [(Ref(output), 1.0)]
        else:
            halves = (Ref(f"{output}_unconditional"), Ref(f"{output}_conditional"))
            for ref in halves:
                self._declare(ref.buffer, 1, loop.outputs[0])
            if self._guidance.batched:
                instructions.append(self._call(call, latent, (0, 1), halves))
            else:
                instructions += [self._call(call, latent, (half,), (halves[half],)) for half in (0, 1)]
            terms = [(halves[0], Linear(1.0, {GUIDANCE_SCALE: -1.0})), (halves[1], Linear(0.0, {GUIDANCE_SCALE: 1.0}))]
        return (*instructions, *solver_instructions(self._solver, call, terms))

    def _step_values(self, call: int) -> list[Instruction]:
        """Copies the packed row of the step; all programs of a denoiser share the port names of its table."""
        table = self._layout.denoiser.table
        instructions: list[Instruction] = []
        for port in table.outputs if table else ():
            self._buffers[port.name] = Buffer(_NUMPY[port.dtype], Rows(1), (int(port.shape[1]),))
            instructions.append(Index(Ref(port.name), port.name, call))
        return instructions

    def _call(self, call: int, latent: Ref, halves: tuple[int, ...], outputs: tuple[Ref, ...]) -> Run:
        """One call of the loop for the given halves of the prompt rows."""
        loop = self._layout.denoiser.loop
        inputs: dict[str, tuple[Ref, ...]] = {}
        for port in loop.inputs:
            if Kind.LATENT in port.kinds:
                inputs[port.name] = (latent,) * len(halves)
            elif port.kinds == {Kind.STEP} or port.shape[:1] != (BATCH,):
                inputs[port.name] = (Ref(port.name),)
            elif Kind.STEP in port.kinds:
                inputs[port.name] = (_rows_of(port.name, call, self._calls, halves, self._parts),)
            else:
                inputs[port.name] = (_rows_of(port.name, 0, 1, halves, self._parts),)
        return Run(loop.name, inputs, {loop.outputs[0].name: outputs})

    def _decode(self) -> tuple[Instruction, ...]:
        instructions: list[Instruction] = []
        for call in self._layout.pipeline.decode:
            graph = self._layout.decoders[call.component]
            inputs = {p.name: (Ref(SAMPLE if b == "latent" else b),) for p, b in zip(graph.inputs, call.inputs, strict=True)}
            for port, buffer in zip(graph.outputs, call.outputs, strict=True):
                self._declare(buffer, 1, port)
            instructions.append(Run(graph.name, inputs, {p.name: (Ref(b),) for p, b in zip(graph.outputs, call.outputs)}))
        return tuple(instructions)

    def _run(self, graph: Graph, inputs: Mapping[str, tuple[Ref, ...]], outputs: tuple[Port, ...]) -> Run:
        for port in outputs:
            self._declare(port.name, self._parts, port)
        return Run(graph.name, inputs, {port.name: (Ref(port.name),) for port in outputs})

    def _ask(self, port: Port) -> None:
        """Declares a buffer that the request fills."""
        if port.name not in self._buffers:
            self._declare(port.name, self._parts, port)
            self._request.append(port.name)

    def _declare(self, name: str, parts: int, port: Port) -> None:
        first, *rest = port.shape
        rows = Rows(int(first)) if isinstance(first, int) else Rows(parts * (self._calls if STEPS in first else 1), per_batch=True)
        self._buffers[name] = Buffer(_NUMPY[port.dtype], rows, tuple(int(d) for d in rest))


def _rows_of(buffer: str, step: int, steps: int, halves: tuple[int, ...], parts: int) -> Ref:
    """The rows of one step and of some halves: all of them, or the one half that is asked for."""
    if len(halves) == parts:
        return Ref(buffer, step, steps)
    return Ref(buffer, step * parts + halves[0], steps * parts)


def _tables(denoiser: Hoisted, solver: Solver) -> Tables:
    """Step tables: packed step values ["steps", W], evaluated here for all steps in one call, and the timesteps for the schedule."""
    timesteps = np.array(solver.timesteps, np.float32)
    tables: Tables = {}
    if denoiser.table is not None:
        values = run(denoiser.table, {denoiser.table.inputs[0].name: torch.from_numpy(timesteps)})
        tables |= {name: value.numpy() for name, value in values.items()}
    return tables | _schedule_table(denoiser, timesteps)


def _blank_tables(denoiser: Hoisted, solver: Solver) -> Tables:
    """Tables of the same shapes that take no memory."""
    ports = denoiser.table.outputs if denoiser.table is not None else ()
    timesteps = np.array(solver.timesteps, np.float32)
    blank = {p.name: np.broadcast_to(np.zeros((), _NUMPY[p.dtype]), (len(timesteps), int(p.shape[1]))) for p in ports}
    return blank | _schedule_table(denoiser, timesteps)


def _schedule_table(denoiser: Hoisted, timesteps: npt.NDArray[np.generic]) -> Tables:
    return {} if denoiser.schedule is None else {_TIMESTEPS: timesteps[None]}
