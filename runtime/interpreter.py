"""Runs a sampling program with any callables as components.

A component takes a dict of arrays (input port -> array) and returns one (output port -> array). Its inputs are valid during the
call only: they may be views of buffers, and are overwritten later. Its outputs it hands over: it never writes to them again.

Memory: a buffer goes after the last instruction that names it; `release` says when a component has run for the last time.
Sums are made in float32, in the order of the terms, in place where the first term is the result or no term overlaps it.
An input that joins several refs is joined again only when one of them has changed.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from dexport.errors import Failure, UserError
from dexport.runtime.noise import Noise
from dexport.runtime.program import Coefficient, Combine, Draw, Index, Instruction, Program, Ref, Row, Run, Term, reads, writes
from dexport.runtime.trace import scale_of, trace_line

Array = npt.NDArray[Any]
Component = Callable[[dict[str, Array]], Mapping[str, Array]]
OnStep = Callable[[int, float, Mapping[str, Array]], None]


class Cancelled(Failure):
    """The caller asked a run to stop."""


def run_program(
    program: Program,
    components: Mapping[str, Component],
    request: Mapping[str, Array],
    *,
    parameters: Mapping[str, float],
    noise: Noise,
    tables: Mapping[str, Array],
    batch: int = 1,
    on_step: OnStep | None = None,
    cancel: Callable[[], bool] | None = None,
    release: Callable[[str], None] | None = None,
    trace: Callable[[str], None] | None = None,
) -> dict[str, Array]:
    """Runs a program that `check_program` has accepted.

    Args:
        program: what to run.
        components: a callable for every component that the program names.
        request: arrays for `program.request`; they are not written to.
        parameters: numbers that replace the program's defaults.
        noise: the stream that the program's draws come from.
        tables: the tensors beside the program.
        batch: pictures at once; the size of "batch" in the buffers.
        on_step: called after each iteration with its index, its timestep and the live buffers (copy what is to be kept).
        cancel: asked before every instruction; true stops the run.
        release: called once per component, right after its last run.
        trace: called before every instruction with the line that says what it does, see `trace.trace_line`.

    Returns:
        The arrays of `program.results`.

    Raises:
        UserError: request, parameters, tables or components do not fit the program.
        Failure: a component returned the wrong ports, shape or dtype, or numbers that are not finite.
        Cancelled: `cancel` said so.
    """
    _check_request(program, components, request, tables, batch)
    machine = _Machine(program, components, request, _parameters(program, parameters), noise, tables, batch)
    last_buffers, last_components = _last_uses(program)
    ends = _iteration_ends(program)
    for position, (place, instruction) in enumerate(program.instructions()):
        where = f"program '{program.name}', {place}"
        if cancel is not None and cancel():
            raise Cancelled(where, expected="to run to the end", got="a request to stop", fix="run it again for a result")
        if trace is not None:
            trace(trace_line(place, instruction, machine.parameters))
        machine.execute(instruction, where)
        for component in last_components.get(position, ()):
            machine.forget_component(component)
            if release is not None:
                release(component)
        machine.forget_buffers(last_buffers.get(position, ()))
        if on_step is not None:
            for step in ends.get(position, ()):
                on_step(step, program.timesteps[step], MappingProxyType(machine.buffers))
    return {name: machine.buffers[name] for name in program.results}


def _last_uses(program: Program) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Position of an instruction -> buffers, components that no later one names. Results stay."""
    last_buffer: dict[str, int] = {}
    last_component: dict[str, int] = {}
    for position, (_, instruction) in enumerate(program.instructions()):
        last_buffer |= {ref.buffer: position for ref in (*reads(instruction), *writes(instruction))}
        if isinstance(instruction, Run):
            last_component[instruction.component] = position
    kept = set(program.results)
    return _by_position({name: at for name, at in last_buffer.items() if name not in kept}), _by_position(last_component)


def _by_position(last: Mapping[str, int]) -> dict[int, list[str]]:
    positions: dict[int, list[str]] = {}
    for name, position in last.items():
        positions.setdefault(position, []).append(name)
    return positions


def _iteration_ends(program: Program) -> dict[int, list[int]]:
    """Position of an instruction -> iterations that end with it (an empty one ends with its predecessor)."""
    ends: dict[int, list[int]] = {}
    position = len(program.begin)
    for step, block in enumerate(program.iterations):
        position += len(block)
        ends.setdefault(position - 1, []).append(step)
    return ends


class _Machine:
    """The buffers of one run, and what each instruction does to them."""

    def __init__(
        self,
        program: Program,
        components: Mapping[str, Component],
        request: Mapping[str, Array],
        parameters: Mapping[str, float],
        noise: Noise,
        tables: Mapping[str, Array],
        batch: int,
    ) -> None:
        self.buffers: dict[str, Array] = dict(request)
        self.parameters = parameters
        self._program, self._components = program, components
        self._noise, self._tables, self._batch = noise, tables, batch
        self._writable: set[str] = set()  # buffers whose memory was allocated here
        self._version: dict[str, int] = {}
        self._joined: dict[tuple[str, str], tuple[tuple[tuple[Ref, int], ...], Array]] = {}
        self._scratch = np.empty(0, np.float32)

    def execute(self, instruction: Instruction, where: str) -> None:
        match instruction:
            case Run():
                self._run(instruction, where)
            case Combine(out, terms):
                self._combine(out, terms)
            case Draw(out):
                self._store(out, self._noise.normal(self._shape(out)), fresh=True)
            case Index(out, table, row):
                self._index(out, self._tables[table][row])

    def forget_component(self, component: str) -> None:
        self._joined = {key: value for key, value in self._joined.items() if key[0] != component}

    def forget_buffers(self, names: list[str] | tuple[()]) -> None:
        for name in names:
            self.buffers.pop(name, None)
            self._writable.discard(name)

    def _shape(self, ref: Ref) -> tuple[int, ...]:
        rows, *sizes = self._program.buffers[ref.buffer].shape(self._batch)
        return (rows // ref.parts, *sizes)

    def _view(self, ref: Ref) -> Array:
        array = self.buffers[ref.buffer]
        rows = array.shape[0] // ref.parts
        return array if ref.parts == 1 else array[ref.part * rows : (ref.part + 1) * rows]

    def _store(self, ref: Ref, array: Array, *, fresh: bool) -> None:
        """Makes `array` the content of `ref`; `fresh` memory belongs to nobody else and may be written to later."""
        self._version[ref.buffer] = self._version.get(ref.buffer, 0) + 1
        if ref.parts == 1:
            self.buffers[ref.buffer] = array
            (self._writable.add if fresh else self._writable.discard)(ref.buffer)
            return
        if ref.buffer not in self._writable:
            declared = self._program.buffers[ref.buffer]
            own = np.zeros(declared.shape(self._batch), declared.dtype)
            if ref.buffer in self.buffers:
                own[...] = self.buffers[ref.buffer]
            self.buffers[ref.buffer] = own
            self._writable.add(ref.buffer)
        self._view(ref)[...] = array

    def _run(self, run: Run, where: str) -> None:
        inputs = {port: self._input(run.component, port, refs) for port, refs in run.inputs.items()}
        outputs = self._components[run.component](inputs)
        if set(outputs) != set(run.outputs):
            expected, got = (", ".join(sorted(ports)) or "(none)" for ports in (run.outputs, outputs))
            raise Failure(f"{where}, component '{run.component}'", expected=f"outputs {expected}", got=got, fix="rebuild the bundle")
        for port, refs in run.outputs.items():
            self._accept(refs, outputs[port], inputs, f"{where}, component '{run.component}', output '{port}'")

    def _input(self, component: str, port: str, refs: tuple[Ref, ...]) -> Array:
        if len(refs) == 1:
            return self._view(refs[0])
        state = tuple((ref, self._version.get(ref.buffer, 0)) for ref in refs)
        known = self._joined.get((component, port))
        if known is not None and known[0] == state:
            return known[1]
        views = [self._view(ref) for ref in refs]
        shape = (sum(len(view) for view in views), *views[0].shape[1:])
        space = known[1] if known is not None and known[1].shape == shape else np.empty(shape, views[0].dtype)
        np.concatenate(views, out=space)
        self._joined[component, port] = (state, space)
        return space

    def _accept(self, refs: tuple[Ref, ...], array: Array, inputs: Mapping[str, Array], where: str) -> None:
        rows, *sizes = self._shape(refs[0])
        declared = np.dtype(self._program.buffers[refs[0].buffer].dtype)
        if array.dtype != declared or array.shape != (rows * len(refs), *sizes):
            expected, got = f"{declared} {[rows * len(refs), *sizes]}", f"{array.dtype} {list(array.shape)}"
            raise Failure(where, expected=expected, got=got, fix="rebuild the bundle")
        _check_finite(array, where)
        if any(np.may_share_memory(array, given) for given in inputs.values()):
            array = array.copy()
        for index, ref in enumerate(refs):
            self._store(ref, array[index * rows : (index + 1) * rows], fresh=False)

    def _index(self, out: Ref, row: Array) -> None:
        shape = self._shape(out)
        if row.size == np.prod(shape):
            self._store(out, row.reshape(shape), fresh=False)
        else:
            self._store(out, np.broadcast_to(row, shape).copy(), fresh=True)

    def _combine(self, out: Ref, terms: tuple[Term, ...]) -> None:
        shape = self._shape(out)
        dtype = self._program.buffers[out.buffer].dtype
        overlaps = any(term.buffer.buffer == out.buffer for term in terms[1:])
        in_place = out.buffer in self._writable and dtype == "float32" and not overlaps
        total = self._view(out) if in_place else np.empty(shape, np.float32)
        for index, term in enumerate(terms):
            scale = self._coefficient(term.scale)
            if index == 0:
                np.multiply(self._view(term.buffer), scale, out=total, dtype=np.float32)
                continue
            if self._scratch.shape != shape:
                self._scratch = np.empty(shape, np.float32)
            np.multiply(self._view(term.buffer), scale, out=self._scratch, dtype=np.float32)
            np.add(total, self._scratch, out=total)
        if in_place:
            self._version[out.buffer] = self._version.get(out.buffer, 0) + 1
        else:
            self._store(out, total.astype(dtype, copy=False), fresh=True)

    def _coefficient(self, coefficient: Coefficient) -> Array:
        """A float32 array that broadcasts over the buffer: 0-dimensional unless it is a table row."""
        if isinstance(coefficient, Row):
            return np.asarray(self._tables[coefficient.table][coefficient.row], np.float32)
        return np.asarray(scale_of(coefficient, self.parameters))


def _check_finite(array: Array, where: str) -> None:
    if array.dtype.kind != "f":
        return
    with np.errstate(over="ignore", invalid="ignore"):
        # One pass without a temporary; only when the sum is not finite is it worth looking at every number.
        suspicious = not np.isfinite(np.add.reduce(array, axis=None, dtype=np.float32))
    if suspicious and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        fix = "build with a wider precision, or check the model's weights"
        raise Failure(where, expected="finite numbers", got=f"{bad} of {array.size} NaN or infinite", fix=fix)


def _parameters(program: Program, given: Mapping[str, float]) -> dict[str, float]:
    where = f"program '{program.name}'"
    for name, value in given.items():
        if name not in program.parameters:
            names = ", ".join(sorted(program.parameters)) or "(none)"
            raise UserError(where, expected=f"one of the parameters {names}", got=f"'{name}'", fix="leave it out")
        if not np.isfinite(value):
            raise UserError(f"{where}, parameter '{name}'", expected="a finite number", got=str(value), fix="give a number")
    return {**program.parameters, **given}


def _check_request(
    program: Program, components: Mapping[str, Component], request: Mapping[str, Array], tables: Mapping[str, Array], batch: int
) -> None:
    where = f"program '{program.name}'"
    if batch < 1:
        raise UserError(where, expected="a batch of at least 1", got=str(batch), fix="ask for at least one picture")
    if set(request) != set(program.request):
        expected, got = (", ".join(sorted(names)) or "(none)" for names in (program.request, request))
        raise UserError(where, expected=f"the request's buffers {expected}", got=got, fix="fill exactly these")
    for name, array in request.items():
        buffer = program.buffers[name]
        _check_array(f"{where}, request '{name}'", array, buffer.dtype, buffer.shape(batch))
    for name, table in program.tables.items():
        if name not in tables:
            raise UserError(where, expected=f"table '{name}'", got="none of that name", fix="rebuild the bundle")
        _check_array(f"{where}, table '{name}'", tables[name], table.dtype, table.shape)
    for _, instruction in program.instructions():
        if isinstance(instruction, Run) and instruction.component not in components:
            raise UserError(where, expected=f"component '{instruction.component}'", got="none of that name", fix="rebuild the bundle")


def _check_array(where: str, array: Array, dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        expected, got = f"{dtype} {list(shape)}", f"{array.dtype} {list(array.shape)}"
        raise UserError(where, expected=expected, got=got, fix="give an array of that dtype and shape")
