"""The sampling program: named buffers and straight-line instructions, as frozen data and as JSON.

A program holds everything that a scheduler would decide while sampling, already decided. `begin` runs once, then one list of
instructions per model call, then `end`. There are four instructions (see the classes): run a component, combine buffers with
numbers, draw noise, copy a table row. The format is in `schemas/program.schema.json`; `program_check` holds the rules that a
schema cannot say. Nothing here executes anything: see `interpreter`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dexport.runtime.schema_check import check_schema, check_version
from dexport.runtime.strict_json import parse_json

SCHEMA_VERSION = 1
BATCH = "batch"
MAX_PROGRAM_BYTES = 16 << 20  # a thousand iterations of six instructions take about 2 MB

_REF = re.compile(r"(?P<buffer>[^\[\]]+)(\[(?P<part>\d+)/(?P<parts>\d+)\])?")
_ROWS = re.compile(r"(?:(?P<factor>\d+)\*)?batch")


@dataclass(frozen=True)
class Ref:
    """The part `part` of `parts` equal parts of a buffer's rows (axis 0); by default the whole buffer. Written `name[part/parts]`."""

    buffer: str
    part: int = 0
    parts: int = 1

    def __str__(self) -> str:
        return self.buffer if self.parts == 1 else f"{self.buffer}[{self.part}/{self.parts}]"


@dataclass(frozen=True)
class Linear:
    """A coefficient of the request: constant + sum of slopes[name] * parameter."""

    constant: float
    slopes: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """A coefficient per element: row `row` of a table, broadcast over the buffer."""

    table: str
    row: int


Coefficient = float | Linear | Row


@dataclass(frozen=True)
class Term:
    """One summand of a Combine."""

    buffer: Ref
    scale: Coefficient


@dataclass(frozen=True)
class Run:
    """Calls a component. Each input port gets its refs concatenated on axis 0; each output is split evenly over its refs."""

    component: str
    inputs: Mapping[str, tuple[Ref, ...]]
    outputs: Mapping[str, tuple[Ref, ...]]


@dataclass(frozen=True)
class Combine:
    """out = sum of scale * buffer: scales rounded to float32, summed in float32 in the order of the terms. `out` may be a term."""

    out: Ref
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Draw:
    """Fills `out` with standard normal numbers from the request's stream, in program order."""

    out: Ref


@dataclass(frozen=True)
class Index:
    """Copies row `row` of a table into `out`, broadcast."""

    out: Ref
    table: str
    row: int


Instruction = Run | Combine | Draw | Index


@dataclass(frozen=True)
class Rows:
    """Size of axis 0: `count`, times the request's batch when `per_batch`. Written 3, "batch", "2*batch"."""

    count: int
    per_batch: bool = False

    def at(self, batch: int) -> int:
        """The number of rows for a batch."""
        return self.count * batch if self.per_batch else self.count

    def __str__(self) -> str:
        if not self.per_batch:
            return str(self.count)
        return BATCH if self.count == 1 else f"{self.count}*{BATCH}"


@dataclass(frozen=True)
class Buffer:
    """A named tensor: rows on axis 0, then fixed sizes. `dtype` is a numpy name."""

    dtype: str
    rows: Rows
    sizes: tuple[int, ...] = ()

    def shape(self, batch: int) -> tuple[int, ...]:
        """The shape for a batch."""
        return (self.rows.at(batch), *self.sizes)


@dataclass(frozen=True)
class Table:
    """A tensor in the program's safetensors file; axis 0 is what `row` indexes."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """A whole sampling run for one (scheduler, steps, size, start step).

    Attributes:
        name: the name of the program in its bundle.
        scheduler: class name of the scheduler that it reproduces.
        steps: number of steps that was asked for; a step may be several iterations.
        size: [height, width] or [frames, height, width] in pixels.
        start_step: first step that is run (0 unless the run starts from a given picture).
        timesteps: one per iteration, for callbacks and inspection.
        parameters: numbers of the request (such as guidance_scale) with their defaults.
        tables: tensors of the safetensors file beside the program.
        buffers: every buffer that an instruction names.
        request: buffers that the request fills before `begin` (token ids, masks, class labels).
        results: buffers that are handed back.
        begin: instructions before the loop.
        iterations: instructions of each model call.
        end: instructions after the loop.
    """

    name: str
    scheduler: str
    steps: int
    size: tuple[int, ...]
    start_step: int
    timesteps: tuple[float, ...]
    parameters: Mapping[str, float]
    tables: Mapping[str, Table]
    buffers: Mapping[str, Buffer]
    request: tuple[str, ...]
    results: tuple[str, ...]
    begin: tuple[Instruction, ...]
    iterations: tuple[tuple[Instruction, ...], ...]
    end: tuple[Instruction, ...]

    def instructions(self) -> Iterator[tuple[str, Instruction]]:
        """Every instruction in order, with the place that errors name: `begin[0]`, `iterations[3][1]`, `end[0]`."""
        for index, instruction in enumerate(self.begin):
            yield f"begin[{index}]", instruction
        for step, block in enumerate(self.iterations):
            for index, instruction in enumerate(block):
                yield f"iterations[{step}][{index}]", instruction
        for index, instruction in enumerate(self.end):
            yield f"end[{index}]", instruction


def reads(instruction: Instruction) -> tuple[Ref, ...]:
    """What an instruction reads, in order."""
    if isinstance(instruction, Run):
        return tuple(ref for refs in instruction.inputs.values() for ref in refs)
    if isinstance(instruction, Combine):
        return tuple(term.buffer for term in instruction.terms)
    return ()


def writes(instruction: Instruction) -> tuple[Ref, ...]:
    """What an instruction writes, in order."""
    if isinstance(instruction, Run):
        return tuple(ref for refs in instruction.outputs.values() for ref in refs)
    return (instruction.out,)


def parse_ref(text: str) -> Ref:
    """Reads `name` or `name[part/parts]`.

    Raises:
        ValueError: the text is neither.
    """
    match = _REF.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is not a buffer reference; write name or name[part/parts]")
    return Ref(match["buffer"]) if match["part"] is None else Ref(match["buffer"], int(match["part"]), int(match["parts"]))


def parse_rows(size: int | str) -> Rows:
    """Reads the size of axis 0: an integer, "batch" or "n*batch".

    Raises:
        ValueError: the text is none of them.
    """
    if isinstance(size, int):
        return Rows(size)
    match = _ROWS.fullmatch(size)
    if match is None:
        raise ValueError(f"'{size}' is not a number of rows; write an integer, batch or n*batch")
    return Rows(int(match["factor"] or 1), per_batch=True)


def program_to_json(program: Program) -> str:
    """The JSON text of a program; `program_from_json` reads it back equal."""
    document = {
        "schema": SCHEMA_VERSION,
        "name": program.name,
        "scheduler": program.scheduler,
        "steps": program.steps,
        "size": list(program.size),
        "start_step": program.start_step,
        "timesteps": list(program.timesteps),
        "parameters": dict(program.parameters),
        "tables": {name: {"dtype": table.dtype, "shape": list(table.shape)} for name, table in program.tables.items()},
        "buffers": {name: _buffer_document(buffer) for name, buffer in program.buffers.items()},
        "request": list(program.request),
        "results": list(program.results),
        "begin": [_instruction_document(instruction) for instruction in program.begin],
        "iterations": [[_instruction_document(instruction) for instruction in block] for block in program.iterations],
        "end": [_instruction_document(instruction) for instruction in program.end],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def program_from_json(text: bytes, where: str) -> Program:
    """Reads a program and checks its form; `program_check.check_program` checks its meaning.

    Args:
        text: JSON in UTF-8.
        where: the file's name, for errors.

    Raises:
        UserError: not JSON, not of the schema, or a newer schema; names the place in the document.
    """
    document = parse_json(text, where, max_bytes=MAX_PROGRAM_BYTES)
    check_version(document, "program", SCHEMA_VERSION, where)
    check_schema(document, "program", where)
    return _program(document)


def _buffer_document(buffer: Buffer) -> dict[str, Any]:
    rows = str(buffer.rows) if buffer.rows.per_batch else buffer.rows.count
    return {"dtype": buffer.dtype, "shape": [rows, *buffer.sizes]}


def _instruction_document(instruction: Instruction) -> dict[str, Any]:
    match instruction:
        case Run(component, inputs, outputs):
            ports = [{port: [str(ref) for ref in refs] for port, refs in side.items()} for side in (inputs, outputs)]
            return {"op": "run", "component": component, "inputs": ports[0], "outputs": ports[1]}
        case Combine(out, terms):
            summands = [{"buffer": str(term.buffer), "scale": _coefficient_document(term.scale)} for term in terms]
            return {"op": "combine", "out": str(out), "terms": summands}
        case Draw(out):
            return {"op": "noise", "out": str(out)}
        case Index(out, table, row):
            return {"op": "index", "out": str(out), "table": table, "row": row}


def _coefficient_document(coefficient: Coefficient) -> Any:
    match coefficient:
        case Linear(constant, slopes):
            return {"constant": constant, "linear": dict(slopes)}
        case Row(table, row):
            return {"table": table, "row": row}
    return coefficient


def _program(document: dict[str, Any]) -> Program:
    return Program(
        name=document["name"],
        scheduler=document["scheduler"],
        steps=document["steps"],
        size=tuple(document["size"]),
        start_step=document["start_step"],
        timesteps=tuple(float(value) for value in document["timesteps"]),
        parameters={name: float(value) for name, value in document["parameters"].items()},
        tables={name: Table(table["dtype"], tuple(table["shape"])) for name, table in document["tables"].items()},
        buffers={name: _buffer(buffer) for name, buffer in document["buffers"].items()},
        request=tuple(document["request"]),
        results=tuple(document["results"]),
        begin=tuple(_instruction(item) for item in document["begin"]),
        iterations=tuple(tuple(_instruction(item) for item in block) for block in document["iterations"]),
        end=tuple(_instruction(item) for item in document["end"]),
    )


def _buffer(document: dict[str, Any]) -> Buffer:
    rows, *sizes = document["shape"]
    return Buffer(document["dtype"], parse_rows(rows), tuple(sizes))


def _instruction(document: dict[str, Any]) -> Instruction:
    match document["op"]:
        case "run":
            inputs, outputs = (
                {port: tuple(parse_ref(ref) for ref in refs) for port, refs in document[side].items()} for side in ("inputs", "outputs")
            )
            return Run(document["component"], inputs, outputs)
        case "combine":
            terms = tuple(Term(parse_ref(term["buffer"]), _coefficient(term["scale"])) for term in document["terms"])
            return Combine(parse_ref(document["out"]), terms)
        case "noise":
            return Draw(parse_ref(document["out"]))
    return Index(parse_ref(document["out"]), document["table"], document["row"])


def _coefficient(document: Any) -> Coefficient:
    if not isinstance(document, dict):
        return float(document)
    if "table" in document:
        return Row(document["table"], document["row"])
    return Linear(float(document["constant"]), {name: float(slope) for name, slope in document["linear"].items()})
