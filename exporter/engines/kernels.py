"""Which kernels did TensorRT-RTX choose? Reads them out of a serialized plan, without a GPU and without TensorRT.

That an engine builds says nothing about its speed: a scale that is not a constant makes a "quantized" linear run in half
precision, a fp32 attention is never fused, and no message tells. But a plan carries its compiled graphs as text, and this
module reads that text. Checked against plans of TensorRT-RTX 1.7.1; there is no public description of the format.

How a plan is laid out (everything else in it is skipped):

- A compiled graph is a record: the bytes ``NLYM``, four bytes of version, a little-endian uint64 with the length of the
  text, then the text. It starts with ``header {`` and has the sections ``header``, ``descriptors`` (the tensors), ``main``
  (what runs on the GPU) and ``shape_main`` (integer arithmetic on shapes, run on the host, ignored here).
- A graph whose header says ``accelerators={sm86 sm89 }`` is a *program*. A plan has one per optimization profile, for all
  its GPUs together; a profile is compiled on its own and may get other kernels than its neighbour.
- A graph with ``accelerators={*}`` is the body of a ``runtime_fusion`` of the program before it, which names it by
  position (``binary=2``). The body tells what the fused kernel computes: a GEMM and what follows it.

How a kernel is recognised:

- *gemm*: ``fully_connected``, alone or in the body of a ``runtime_fusion``. Its precision is that of its two operands: int8
  by int8 is an INT8 GEMM; half by half is FP16 whatever its inputs were dequantized from. A float GEMM is ``tf32`` where
  the header allows it (``tf32=1``, TensorRT's default) and ``fp32`` otherwise. One whose body widens its second operand from
  integers is ``int4-weights`` or ``int8-weights``: arithmetic in 16 or 32 bits, weights read at their bits. Where the widened
  weight goes through memory, that is a kernel of its own and the GEMM is FP16.
- *attention*: a function with ``mha`` in its name (``_gemm_mha_v2``). Its precision is the commonest type of its operands:
  query, key and value share one, and come in no fixed order with masks between them.
- *convolution*: ``corrltn`` (its name for convolution) and ``deconvolution``, also inside fusions.
- *conversion*: a ``copy``, or a function that only casts, transposes, reshapes or moves (``__myl_TranReshMove``): work that
  a better spelling might save.
- *other*: pointwise, normalisation, reduction, GEMMs of so few elements that the compiler wrote them out, and whatever is
  unknown. Control flow, checks and signals between streams are not kernels.
- *unfused attention*: a GEMM whose result passes through a kernel with an exponential into another GEMM. The scores
  (sequence x sequence) then go through memory. A suspicion, because an exponential between GEMMs can have other reasons.

Which attentions fuse (measured, SM86, SM89 and SM120 alike): MatMul, Softmax, MatMul in fp16 and bf16, head sizes 16 to 256, with
the scale anywhere, any additive, Where or boolean mask, softmax alone in fp32, rotary embedding before, fixed or free sizes. Not
fused: fp32 (as an island too), head sizes below 16 and above 256, scores that something else reads, and batch x heads fixed
to 1; the last one fuses if the profile allows two rows.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MAGIC = b"NLYM"
_START = b"header {"
_LONGEST_TEXT = 256 * 1024 * 1024

_PRECISIONS = {"half": "fp16", "bf16": "bf16", "float": "fp32", "int8": "int8", "int4": "int4", "double": "fp64"}
_CONVOLUTIONS = {"corrltn", "convolution", "deconvolution"}
_NO_KERNELS = {"jmp", "cjmp", "shape_call", "assert", "memset", "label"}
_NO_NUMBERS = {"bool", "int32", "int64"}
_MOVES = {"Cast", "Tran", "Resh", "Move", "Copy", "Sque", "Unsq"}

_TENSOR = re.compile(r"^  (?:sub_)?tensor=\{(.*) \}$", re.MULTILINE)
_INSTRUCTION = re.compile(r"^  (\w+)=\{ (.*)$", re.MULTILINE)
_ACCELERATORS = re.compile(r"^  accelerators=\{([^}]*)\}", re.MULTILINE)
_QUOTED = re.compile(r'"([^"]*)"')
_LAYER = re.compile('\\[ONNX Layer: ([^\x1f"]*)\\]')


@dataclass(frozen=True)
class Kernel:
    """One kernel of a program.

    Args:
        kind: "gemm", "attention", "convolution", "conversion" or "other".
        name: the compiler's name; for a fused function it lists what was fused.
        precisions: of each GEMM, attention or convolution in it, such as ("int8",); empty for the other kinds.
        inputs: types and shapes, such as "half[512x256]"; "?" where the plan does not describe the tensor.
        outputs: likewise.
        layers: the ONNX nodes it came from, as far as the plan tells.
    """

    kind: str
    name: str
    precisions: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """The compiled graph of one optimization profile: GPUs it is for (such as "sm86"), kernels in order, unfused attentions."""

    accelerators: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    unfused_attention: tuple[str, ...]


@dataclass(frozen=True)
class KernelCounts:
    """Kernels of one program, counted.

    Args:
        gemms: number of GEMMs by precision ("fp32", "tf32", "fp16", "bf16", "int8", "fp8", "fp4"; "int4-weights" and
            "int8-weights" of weight-only ones; "unknown" if the plan does not describe the operands).
        attentions: number of fused attentions by precision.
        convolutions: number of convolutions by precision.
        conversions: kernels that only move or convert data.
        others: all other kernels.
        unfused_attention: scores that go through memory, such as "half[2x4x256x256] (node_Softmax_53)".
    """

    gemms: Mapping[str, int] = field(default_factory=dict)
    attentions: Mapping[str, int] = field(default_factory=dict)
    convolutions: Mapping[str, int] = field(default_factory=dict)
    conversions: int = 0
    others: int = 0
    unfused_attention: tuple[str, ...] = ()


@dataclass(frozen=True)
class KernelSummary:
    """What a plan runs: one `KernelCounts` per optimization profile, in the plan's order.

    Args:
        readable: whether the plan contained compiled graphs that could be read; if not, nothing is claimed about it.
        reason: why it is not readable, else empty.
        accelerators: GPUs the plan is for, such as ("sm86", "sm89").
        programs: counts per optimization profile; empty if not readable.
    """

    readable: bool
    reason: str
    accelerators: tuple[str, ...]
    programs: tuple[KernelCounts, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and strings, for JSON."""
        return {
            "readable": self.readable,
            "reason": self.reason,
            "accelerators": list(self.accelerators),
            "programs": [
                {
                    "gemms": dict(p.gemms),
                    "attentions": dict(p.attentions),
                    "convolutions": dict(p.convolutions),
                    "conversions": p.conversions,
                    "others": p.others,
                    "unfused_attention": list(p.unfused_attention),
                }
                for p in self.programs
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> KernelSummary:
        """The inverse of `to_dict`."""
        programs = tuple(KernelCounts(**{**p, "unfused_attention": tuple(p["unfused_attention"])}) for p in data["programs"])
        return cls(data["readable"], data["reason"], tuple(data["accelerators"]), programs)

    def table(self) -> str:
        """A small text table: one line per program, or one line with the reason if the plan is not readable."""
        if not self.readable:
            return f"kernels unknown: {self.reason}"
        head = ("program", "GEMMs", "fused attentions", "convolutions", "conversions", "others", "unfused attentions")
        rows = [
            (
                str(i),
                _listed(p.gemms),
                _listed(p.attentions),
                _listed(p.convolutions),
                str(p.conversions),
                str(p.others),
                str(len(p.unfused_attention)),
            )
            for i, p in enumerate(self.programs)
        ]
        widths = [max(len(row[c]) for row in (head, *rows)) for c in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (head, *rows)]
        return "\n".join([f"kernels for {', '.join(self.accelerators)}", *lines])


def read_kernels(plan: bytes | Path) -> KernelSummary:
    """Counts the kernels of a serialized plan.

    Args:
        plan: the plan, or the file it is in (which is mapped, not read: memory use does not grow with the weights).

    Returns:
        The counts, or a summary with `readable=False` and the reason. Nothing is guessed.
    """
    programs = read_programs(plan)
    if not programs:
        return KernelSummary(False, "the plan holds no readable compiled graph (other TensorRT version, or not a plan)", (), ())
    accelerators = dict.fromkeys(name for program in programs for name in program.accelerators)
    return KernelSummary(True, "", tuple(accelerators), tuple(_count(program) for program in programs))


def read_programs(plan: bytes | Path) -> list[Program]:
    """The programs of a serialized plan with every kernel; empty if the plan holds no readable compiled graph."""
    if isinstance(plan, bytes):
        return _programs(_graphs(plan))
    if plan.stat().st_size == 0:
        return []
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return _programs(_graphs(mapped))


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {precision}" for precision, n in sorted(counts.items())) or "-"


def _count(program: Program) -> KernelCounts:
    by_precision: dict[str, dict[str, int]] = {"gemm": {}, "attention": {}, "convolution": {}}
    plain = {"conversion": 0, "other": 0}
    for kernel in program.kernels:
        if kernel.kind in plain:
            plain[kernel.kind] += 1
        for precision in kernel.precisions:
            counts = by_precision[kernel.kind]
            counts[precision] = counts.get(precision, 0) + 1
    return KernelCounts(
        by_precision["gemm"],
        by_precision["attention"],
        by_precision["convolution"],
        plain["conversion"],
        plain["other"],
        program.unfused_attention,
    )


def _graphs(data: bytes | mmap.mmap) -> Iterator[str]:
    """The texts of the compiled graphs in `data`, one at a time."""
    at = data.find(_MAGIC)
    while at >= 0:
        start = at + 16
        if data[start : start + len(_START)] == _START:
            (length,) = struct.unpack("<Q", data[at + 8 : at + 16])
            if length <= min(_LONGEST_TEXT, len(data) - start):
                yield data[start : start + length].decode("utf-8", errors="replace")
        at = data.find(_MAGIC, at + 4)


@dataclass(frozen=True)
class _Instruction:
    """One line of `main`: its kind and its text."""

    kind: str
    text: str

    @property
    def name(self) -> str:
        found = re.search(r'\bname="([^"]*)"|\bname=(\S+)', self.text)
        return (found[1] or found[2]) if found else ""

    def operands(self, *keys: str) -> list[str]:
        """Names of the tensors listed under the first of `keys` that is there. They are quoted and may contain braces."""
        for key in keys:
            found = re.search(rf'\b{key}=\{{((?:\s*"[^"]*")*)\s*\}}', self.text)
            if found:
                return _QUOTED.findall(found[1])
        return []

    @property
    def inputs(self) -> list[str]:
        return self.operands("input_args", "input")

    @property
    def outputs(self) -> list[str]:
        return self.operands("output_args", "output")


@dataclass(frozen=True)
class _Graph:
    """A compiled graph, parsed: `types` by tensor, `bases` maps a view to the tensor it looks into."""

    accelerators: tuple[str, ...]
    tf32: bool
    types: Mapping[str, str]
    bases: Mapping[str, str]
    instructions: Sequence[_Instruction]

    def described(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(self.types.get(name, "?") for name in names)

    def commonest(self, names: Sequence[str]) -> list[str]:
        """Those operands whose type is the most frequent one; masks and sizes (bool and integers) do not count."""
        kinds = {name: self.types.get(name, "?").partition("[")[0] for name in names}
        numbers = Counter(kind for kind in kinds.values() if kind not in _NO_NUMBERS)
        return [name for name, kind in kinds.items() if numbers and kind == numbers.most_common(1)[0][0]]

    def precision(self, names: Sequence[str]) -> str:
        """Of an operation with these operands: theirs if they agree, "unknown" if the plan does not say."""
        kinds = {self.types.get(name, "?").partition("[")[0] for name in names}
        kind = kinds.pop() if len(kinds) == 1 else "?"
        if kind == "float" and self.tf32:
            return "tf32"
        short = re.match(r"fp[0-9]+", kind)
        return _PRECISIONS.get(kind) or (short[0] if short else "unknown")


def _parse(text: str) -> _Graph:
    head, _, rest = text.partition("\nmain {")
    types, bases = {}, {}
    for found in _TENSOR.finditer(head):
        body = found[1]
        name = re.search(r'\bname="([^"]*)"', body)
        kind = re.search(r"\btype=(\w+)$", body)
        dims = re.search(r"\bdims=\{([^}]*)\}", body)
        base = re.search(r'\bbase="([^"]*)"', body)
        if name and kind and dims:
            types[name[1]] = f"{kind[1]}[{'x'.join(d.strip(chr(34)) for d in dims[1].split())}]"
        if name and base:
            bases[name[1]] = base[1]
    main = rest.partition("\nshape_main {")[0]
    accelerators = _ACCELERATORS.search(head)
    return _Graph(
        tuple(accelerators[1].split()) if accelerators else (),
        "\n  tf32=1\n" in head,
        types,
        bases,
        [_Instruction(found[1], found[2]) for found in _INSTRUCTION.finditer(main)],
    )


def _programs(texts: Iterator[str]) -> list[Program]:
    """Groups each program with the bodies that follow it."""
    groups: list[tuple[_Graph, list[_Graph]]] = []
    for text in texts:
        graph = _parse(text)
        if graph.accelerators and graph.accelerators != ("*",):
            groups.append((graph, []))
        elif groups:
            groups[-1][1].append(graph)
    return [_program(graph, bodies) for graph, bodies in groups]


def _program(graph: _Graph, bodies: Sequence[_Graph]) -> Program:
    # What reads and writes nothing is a signal between streams.
    work = [i for i in graph.instructions if i.kind not in _NO_KERNELS and (i.inputs or i.outputs)]
    kernels = tuple(_kernel(i, graph, bodies) for i in work)
    return Program(graph.accelerators, kernels, _unfused(graph, work, kernels))


def _kernel(instruction: _Instruction, graph: _Graph, bodies: Sequence[_Graph]) -> Kernel:
    if instruction.kind == "runtime_fusion":
        kind, precisions = _fused(instruction, graph, bodies)
    else:
        kind, precisions = _classified(instruction, graph)
    return Kernel(
        kind,
        instruction.name,
        precisions,
        graph.described(instruction.inputs),
        graph.described(instruction.outputs),
        tuple(_LAYER.findall(instruction.text)),
    )


def _classified(instruction: _Instruction, graph: _Graph) -> tuple[str, tuple[str, ...]]:
    if instruction.kind == "fully_connected":
        return "gemm", (graph.precision(instruction.inputs[:2]),)
    if instruction.kind in _CONVOLUTIONS:
        return "convolution", (graph.precision(instruction.inputs[:2]),)
    if instruction.kind == "function" and "mha" in instruction.name:
        return "attention", (graph.precision(graph.commonest(instruction.inputs)),)
    steps = re.findall(r"[A-Z][a-z0-9]*", instruction.name.removeprefix("__myl_"))
    moves = instruction.kind == "function" and bool(steps) and set(steps) <= _MOVES
    return ("conversion" if moves or instruction.kind == "copy" else "other"), ()


def _fused(instruction: _Instruction, graph: _Graph, bodies: Sequence[_Graph]) -> tuple[str, tuple[str, ...]]:
    """A `runtime_fusion` is what its body computes. The body does not repeat whether TF32 is allowed: the program says it."""
    position = re.search(r"\bbinary=(\d+)", instruction.text)
    if position is None or int(position[1]) >= len(bodies):
        return ("gemm", ("unknown",)) if "backbone=gemm" in instruction.text else ("other", ())
    body = bodies[int(position[1])]
    inside = [_classified(i, _Graph((), graph.tf32, body.types, {}, ())) for i in body.instructions]
    widened = [_widened(i.inputs[1], body) for i in body.instructions if i.kind == "fully_connected" and len(i.inputs) > 1]
    if found := tuple(kind for kind in widened if kind):
        return "gemm", found
    for kind in ("gemm", "attention", "convolution"):
        precisions = tuple(p for k, found in inside for p in found if k == kind)
        if precisions:
            return kind, precisions
    return "other", ()


def _widened(name: str, body: _Graph) -> str:
    """ "int4-weights" or "int8-weights" for an operand that the body makes from integers that it is given, else empty."""
    writers = {output: i for i in body.instructions for output in i.outputs}
    seen, stack = set[str](), [name] if name in writers else []
    while stack:
        name = stack.pop()
        kind = body.types.get(name, "?").partition("[")[0]
        if name in writers and name not in seen:
            stack += writers[name].inputs
        elif kind in ("int4", "int8"):
            return f"{kind}-weights"
        seen.add(name)
    return ""


def _unfused(graph: _Graph, work: Sequence[_Instruction], kernels: Sequence[Kernel]) -> tuple[str, ...]:
    """Results of kernels with an exponential that stand between two GEMMs: scores of an attention that was not fused."""
    writer: dict[str, int] = {}  # base tensor -> the kernel that wrote it last
    behind_gemm: set[int] = set()  # kernels that carry on the result of a GEMM
    carried: dict[int, set[int]] = {}  # kernel -> exponentials of GEMM results that it carries on
    found: dict[int, None] = {}
    for at, (instruction, kernel) in enumerate(zip(work, kernels)):
        sources = {writer[base] for n in instruction.inputs if (base := graph.bases.get(n, n)) in writer}
        exponentials = {e for s in sources for e in carried.get(s, ())}
        if kernel.kind == "gemm":
            found.update(dict.fromkeys(sorted(exponentials)))
            behind_gemm.add(at)
        elif kernel.kind in ("other", "conversion") and sources & behind_gemm:
            behind_gemm.add(at)
            carried[at] = {at} if "Exp" in kernel.name else exponentials
        for n in instruction.outputs:
            writer[graph.bases.get(n, n)] = at
    return tuple(f"{kernels[at].outputs[0]} ({', '.join(kernels[at].layers) or kernels[at].name})" for at in found)
