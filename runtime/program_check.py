"""The rules of a sampling program that its schema cannot say.

1. Names exist: buffers, tables, parameters, components and their ports; table rows lie inside their table.
2. Parts are legal at every batch: n divides the rows ("2*batch" has halves, "batch" has no parts).
3. A part that is read was written before (by the request or an earlier instruction), and every result is written whole.
4. Shapes agree: the terms of a combine with its result, a broadcast row with its buffer, refs with their port.
5. Only floats are combined or drawn, and only float tables scale.
6. Every size is bounded, so that a hostile program cannot ask for absurd memory.
7. There are results, and where there are several, their frames join: all else of their shapes is the same.

A port's dimension is a number or a symbol; a symbol has one value within an instruction. Where a component was built for a
fixed number of rows and the buffer's rows are per batch, all such ports must mean the same batch.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from dexport.errors import UserError
from dexport.runtime.manifest import Component, Port
from dexport.runtime.program import (
    Combine,
    Draw,
    Index,
    Instruction,
    Linear,
    Program,
    Ref,
    Row,
    Rows,
    Run,
    Table,
    Term,
    reads,
    writes,
)
from dexport.runtime.strict_json import names_text

MAX_ELEMENTS = 1 << 33
"""Of one buffer at batch 1, and of one table: far above any latent, video or hoisted value."""

_FLOATS = frozenset({"float32", "float16"})
_FIX = "rebuild the bundle"


def check_program(program: Program, components: Mapping[str, Component] | None = None) -> int | None:
    """Checks rules 1 to 7; ports and the join of results only when `components` is given.

    Args:
        program: what `program_from_json` returned, or what an exporter made.
        components: the bundle's components.

    Returns:
        The only batch that the components' fixed shapes allow, or None when any batch is possible.

    Raises:
        UserError: names the program and the instruction (`iterations[3][1]`).
    """
    _check_declarations(program)
    written = {name: _Coverage() for name in program.buffers}
    for name in program.request:
        written[name].add(Ref(name))
    batches: dict[int, str] = {}
    for place, instruction in program.instructions():
        where = f"program '{program.name}', {place}"
        _check_refs(program, instruction, where)
        for ref in reads(instruction):
            if not written[ref.buffer].holds(ref):
                raise UserError(where, expected=f"'{ref}' to be written before it is read", got="no earlier instruction does", fix=_FIX)
        _check_instruction(program, instruction, where)
        if components is not None and isinstance(instruction, Run):
            _check_run(program, instruction, components, where, batches)
        for ref in writes(instruction):
            written[ref.buffer].add(ref)
    for name in program.results:
        if not written[name].holds(Ref(name)):
            raise UserError(f"program '{program.name}'", expected=f"the result '{name}' to be written", got="it is not", fix=_FIX)
    if components is not None:
        _check_join(program)
    return next(iter(batches), None)


@dataclass
class _Coverage:
    """Which parts of a buffer's rows are written: disjoint, sorted, merged intervals of [0, 1]."""

    intervals: list[tuple[Fraction, Fraction]] = field(default_factory=list)

    def add(self, ref: Ref) -> None:
        merged: list[tuple[Fraction, Fraction]] = []
        for low, high in sorted([*self.intervals, _interval(ref)]):
            if merged and low <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            else:
                merged.append((low, high))
        self.intervals = merged

    def holds(self, ref: Ref) -> bool:
        low, high = _interval(ref)
        return any(first <= low and high <= last for first, last in self.intervals)


def _interval(ref: Ref) -> tuple[Fraction, Fraction]:
    return Fraction(ref.part, ref.parts), Fraction(ref.part + 1, ref.parts)


def _check_declarations(program: Program) -> None:
    where = f"program '{program.name}'"
    if len(program.timesteps) != len(program.iterations):
        counts = f"{len(program.timesteps)} timesteps for {len(program.iterations)} iterations"
        raise UserError(where, expected="one timestep per iteration", got=counts, fix=_FIX)
    if program.start_step >= program.steps:
        expected = f"a start step below the {program.steps} steps"
        raise UserError(where, expected=expected, got=str(program.start_step), fix=_FIX)
    sizes = {f"buffer '{name}'": buffer.shape(1) for name, buffer in program.buffers.items()}
    sizes |= {f"table '{name}'": table.shape for name, table in program.tables.items()}
    for name, shape in sizes.items():
        if math.prod(shape) > MAX_ELEMENTS:
            raise UserError(f"{where}, {name}", expected=f"at most {MAX_ELEMENTS} elements", got=f"shape {list(shape)}", fix=_FIX)
    for name in (*program.request, *program.results):
        if name not in program.buffers:
            raise UserError(where, expected=f"one of the buffers {names_text(program.buffers)}", got=f"'{name}'", fix=_FIX)


def _check_join(program: Program) -> None:
    """Rule 7."""
    where = f"program '{program.name}'"
    if not program.results:
        raise UserError(where, expected="at least one result", got="none", fix=_FIX)
    first, *others = program.results
    for name in others:
        one, other = program.buffers[first], program.buffers[name]
        ranks = {len(one.sizes), len(other.sizes)}
        if not ranks <= {3, 4} or (one.dtype, one.rows, one.sizes[-3:]) != (other.dtype, other.rows, other.sizes[-3:]):
            expected = "results of [rows, height, width, 3] or [rows, frames, height, width, 3], alike but for their frames"
            got = " and ".join(f"'{n}' of {b.dtype}, {_shown(b.rows, b.sizes)}" for n, b in ((first, one), (name, other)))
            raise UserError(where, expected=expected, got=got, fix=_FIX)


def _check_refs(program: Program, instruction: Instruction, where: str) -> None:
    """Rules 1 and 2 for every ref."""
    for ref in (*reads(instruction), *writes(instruction)):
        if ref.buffer not in program.buffers:
            raise UserError(where, expected=f"one of the buffers {names_text(program.buffers)}", got=f"'{ref.buffer}'", fix=_FIX)
        rows = program.buffers[ref.buffer].rows
        if ref.part >= ref.parts or rows.count % ref.parts:
            raise UserError(where, expected=f"a legal part of the {rows} rows of '{ref.buffer}'", got=f"'{ref}'", fix=_FIX)


def _check_instruction(program: Program, instruction: Instruction, where: str) -> None:
    """Rules 1, 4 and 5 for everything but ports."""
    match instruction:
        case Combine(out, terms):
            _check_float(program, out, where)
            for term in terms:
                _check_term(program, out, term, where)
        case Draw(out):
            _check_float(program, out, where)
            if program.buffers[out.buffer].dtype != "float32":
                raise UserError(where, expected="noise in a float32 buffer", got=program.buffers[out.buffer].dtype, fix=_FIX)
        case Index(out, table, row):
            declared = _table(program, table, row, where)
            buffer = program.buffers[out.buffer]
            if declared.dtype != buffer.dtype:
                expected = f"table '{table}' to have the dtype of '{out}', {buffer.dtype}"
                raise UserError(where, expected=expected, got=declared.dtype, fix=_FIX)
            _check_broadcast(program, table, declared, out, where)
        case Run(component, inputs, outputs):
            for port, refs in (*inputs.items(), *outputs.items()):
                _check_same(program, refs, f"{where}, component '{component}', port '{port}'")
            for port, refs in outputs.items():
                if len({_rows(program, ref) for ref in refs}) > 1:
                    expected = f"parts of equal rows for output '{port}' of '{component}'"
                    raise UserError(where, expected=expected, got=", ".join(map(str, refs)), fix=_FIX)


def _check_term(program: Program, out: Ref, term: Term, where: str) -> None:
    _check_float(program, term.buffer, where)
    shapes = [(_rows(program, ref), program.buffers[ref.buffer].sizes) for ref in (out, term.buffer)]
    if shapes[0] != shapes[1]:
        expected = f"'{term.buffer}' to have the shape of '{out}', {_shown(*shapes[0])}"
        raise UserError(where, expected=expected, got=_shown(*shapes[1]), fix=_FIX)
    match term.scale:
        case Linear(_, slopes):
            for name in slopes:
                if name not in program.parameters:
                    raise UserError(where, expected=f"one of the parameters {names_text(program.parameters)}", got=f"'{name}'", fix=_FIX)
        case Row(table, row):
            declared = _table(program, table, row, where)
            if declared.dtype not in _FLOATS:
                raise UserError(where, expected=f"table '{table}' to hold floats", got=declared.dtype, fix=_FIX)
            _check_broadcast(program, table, declared, out, where)


def _check_float(program: Program, ref: Ref, where: str) -> None:
    dtype = program.buffers[ref.buffer].dtype
    if dtype not in _FLOATS:
        raise UserError(where, expected=f"'{ref}' to hold floats", got=dtype, fix=_FIX)


def _check_same(program: Program, refs: Iterable[Ref], where: str) -> None:
    kinds = {(program.buffers[ref.buffer].dtype, program.buffers[ref.buffer].sizes) for ref in refs}
    if len(kinds) > 1:
        got = " and ".join(sorted(f"{dtype} {list(sizes)}" for dtype, sizes in kinds))
        raise UserError(where, expected="refs of one dtype and shape (rows aside)", got=got, fix=_FIX)


def _table(program: Program, name: str, row: int, where: str) -> Table:
    if name not in program.tables:
        raise UserError(where, expected=f"one of the tables {names_text(program.tables)}", got=f"'{name}'", fix=_FIX)
    table = program.tables[name]
    if row >= table.shape[0]:
        raise UserError(where, expected=f"a row below {table.shape[0]} of table '{name}'", got=str(row), fix=_FIX)
    return table


def _check_broadcast(program: Program, name: str, table: Table, out: Ref, where: str) -> None:
    """A row never spans axis 0 of a buffer whose rows follow the batch, unless it has one row there."""
    row, buffer, rows = table.shape[1:], program.buffers[out.buffer], _rows(program, out)
    target = (1 if rows.per_batch else rows.count, *buffer.sizes)
    aligned = zip(reversed(row), reversed(target), strict=False)
    if len(row) > len(target) or any(size not in (1, wanted) for size, wanted in aligned):
        expected = f"a row of table '{name}' to broadcast to '{out}', {_shown(rows, buffer.sizes)}"
        raise UserError(where, expected=expected, got=f"row of shape {list(row)}", fix=_FIX)


def _rows(program: Program, ref: Ref) -> Rows:
    rows = program.buffers[ref.buffer].rows
    return Rows(rows.count // ref.parts, rows.per_batch)


def _check_run(program: Program, run: Run, components: Mapping[str, Component], where: str, batches: dict[int, str]) -> None:
    """Names and shapes of ports; `batches` collects the batch that fixed shapes imply and where it was first seen."""
    if run.component not in components:
        raise UserError(where, expected=f"one of the components {names_text(components)}", got=f"'{run.component}'", fix=_FIX)
    component = components[run.component]
    symbols: dict[str, Rows] = {}
    for side, given, ports in (("inputs", run.inputs, component.inputs), ("outputs", run.outputs, component.outputs)):
        if set(given) != set(ports):
            expected = f"the {side} {names_text(ports)} of component '{run.component}'"
            raise UserError(where, expected=expected, got=names_text(given), fix=_FIX)
        for name, refs in given.items():
            _check_port(program, refs, ports[name], f"{where}, component '{run.component}', port '{name}'", symbols, batches)


def _check_port(program: Program, refs: tuple[Ref, ...], port: Port, where: str, symbols: dict[str, Rows], batches: dict[int, str]) -> None:
    buffer, rows = program.buffers[refs[0].buffer], _joined_rows(program, refs, where)
    if buffer.dtype != port.dtype:
        raise UserError(where, expected=port.dtype, got=buffer.dtype, fix=_FIX)
    given = (rows, *map(Rows, buffer.sizes))
    fits = len(given) == len(port.shape)
    for size, wanted in zip(given, port.shape, strict=False):
        if isinstance(wanted, str):
            fits &= symbols.setdefault(wanted, size) == size
        elif size.per_batch:
            fits &= wanted % size.count == 0 and next(iter(batches), wanted // size.count) == wanted // size.count
            batches.setdefault(wanted // size.count, where)
        else:
            fits &= size.count == wanted
    if not fits:
        raise UserError(where, expected=f"shape {list(port.shape)}", got=_shown(rows, buffer.sizes), fix=_FIX)


def _joined_rows(program: Program, refs: tuple[Ref, ...], where: str) -> Rows:
    rows = [_rows(program, ref) for ref in refs]
    if len({item.per_batch for item in rows}) > 1:
        got = ", ".join(f"'{ref}' with {item}" for ref, item in zip(refs, rows))
        raise UserError(where, expected="refs whose rows all follow the batch, or none", got=got, fix=_FIX)
    return Rows(sum(item.count for item in rows), rows[0].per_batch)


def _shown(rows: Rows, sizes: tuple[int, ...]) -> str:
    return f"shape [{', '.join(map(str, (rows, *sizes)))}]"
