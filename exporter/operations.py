"""The operations of a captured graph, quantized or not, as `targets.latency` wants them: a list of `Work`.

Every linear, convolution and attention is an operation; all else only moves data, because compilers fuse it. What is moved:

- a product reads its weight (at its bits, scales included) and its input (at the bits that it multiplies), and writes its output;
- what lies between products reads each of their results once, writes what the next ones read, and writes and reads once more what several
  read (a residual stream). Views cost nothing.

TensorRT multiplies integers as int8 whatever their bits. Those with scales per block on either side are for dexport's plugin
`lowrank_linear`: its weights stay in 4 bits, and int4 meets int4 where the hardware has that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from dexport.passes.graph import Graph, call_nodes, is_tensor, value
from dexport.passes.quantization.recipe import MICRO_FORMATS, Treatment
from dexport.plugins.formats import format_of
from dexport.targets.latency import Work, attention_operations

_WIDE = {torch.float16: "fp16", torch.bfloat16: "bf16"}
_VIEWS = frozenset(
    "reshape view _unsafe_view flatten unflatten unsqueeze squeeze expand slice select transpose permute t split split_with_sizes chunk"
    " unbind getitem clone contiguous alias detach".split()
)
_SCALE_BITS = 16
_FLOAT8 = "e4m3"
_WIDEST_HEAD = 256  # of fused attention kernels: FlashAttention 2 and TensorRT


@dataclass(frozen=True)
class Form:
    """How a product is computed: what is multiplied (a format of `targets`), bits per weight with scales, bits per number of the input."""

    arithmetic: str
    weight_bits: float
    input_bits: float


@dataclass(frozen=True)
class Planned:
    """What a layer will be: its form (None: as it is) and the rank of the branch beside it."""

    form: Form | None
    rank: int = 0


def planned_form(treatment: Treatment | None, wide: str) -> Planned:
    """What a treatment makes of a layer whose numbers are `wide`."""
    if treatment is None or treatment.weights is None:
        return Planned(None)
    weights, activations = treatment.weights, treatment.activations
    formats = (weights.format.split("|")[0], "" if activations is None else activations.format.split("|")[0])
    blocks = weights.block, 0 if activations is None else activations.block
    return Planned(form_of(*formats, *blocks, wide), 0 if treatment.low_rank is None else treatment.low_rank.rank)


def form_of(weight: str, activation: str, block: int, activation_block: int, wide: str) -> Form:
    """The form of quantized weights and activations on a GPU.

    Args:
        weight, activation: formats as in recipes ("int4", "e4m3", "nvfp4"; "" for activations that stay as they are).
        block, activation_block: inputs that share a scale of the weight, and of an activation; 0 for whole rows.
        wide: what is multiplied where only weights are quantized.
    """
    scales = _SCALE_BITS / block if block else 0.0
    if weight in MICRO_FORMATS:
        return Form("nvfp4", 4 + 8 / MICRO_FORMATS[weight][1], 4 + 8 / MICRO_FORMATS[weight][1])
    stored = 4 if format_of(weight).bits <= 4 else 8
    if not activation:
        return Form(wide, stored + scales, 32 if wide == "fp32" else 16)
    if activation == _FLOAT8 or not (block or activation_block):
        return Form("fp8" if activation == _FLOAT8 else "int8", 8, 8)
    read = 4 if format_of(activation).bits <= 4 else 8
    return Form("int4" if read == 4 else "int8", stored + scales, read)


class Operations:
    """The operations of one graph.

    Args:
        sizes: of the symbolic dimensions ("batch", "steps") of its inputs.
        planned: node -> how it will be computed, for layers that are yet to be quantized.
    """

    def __init__(self, graph: Graph, sizes: Mapping[str, int], planned: Mapping[fx.Node, Planned] = MappingProxyType({})) -> None:
        self._graph = graph
        self._planned = planned
        self._symbols: dict[Any, int] = {}
        for port, node in zip(graph.inputs, graph.placeholders().values(), strict=True):
            for dim, size in zip(port.shape, value(node).shape, strict=True):
                if isinstance(dim, str) and isinstance(size, torch.SymInt):
                    self._symbols |= {symbol: sizes[dim] for symbol in size.node.expr.free_symbols if dim in sizes}

    def all(self) -> tuple[Work, ...]:
        """Every operation, in order; what lies between products is one entry at the end."""
        found: list[Work] = []
        for node in call_nodes(self._graph):
            if (write := _WRITERS.get(_name(node))) is not None:
                found += write(self, node)
        return (*found, Work("between products", "traffic", 0.0, self._between()))

    def layer(self, node: fx.Node, form: Form | None, rank: int = 0) -> Iterator[Work]:
        """A linear or convolution in a form (None: as it is), and its low-rank branch."""
        x, weight = _operand(node, 0), _operand(node, 1)
        wide = self.wide(node)
        used = form or Form(wide, 8 * value(weight).dtype.itemsize, 8 * value(x).dtype.itemsize)
        shape = [int(size) for size in value(weight).shape]
        parameters, inputs, outputs = math.prod(shape), self._numel(x), self._numel(node)
        moved = (parameters * used.weight_bits + inputs * used.input_bits) / 8 + self.nbytes(node)
        yield Work(node.name, "product", 2.0 * outputs * parameters / shape[0], moved, used.arithmetic)
        if rank:
            tokens, size = outputs // shape[0], value(x).dtype.itemsize
            for ends in ((shape[1], rank), (rank, shape[0])):
                parts = ends[0] * ends[1] + tokens * sum(ends)
                yield Work(f"{node.name} branch", "product", 2.0 * tokens * ends[0] * ends[1], float(size * parts), wide)

    def wide(self, node: fx.Node) -> str:
        """The format of a node's numbers."""
        return _WIDE.get(value(node).dtype, "fp32")

    def plain(self, node: fx.Node) -> Iterator[Work]:
        """A linear or convolution as the graph has it, or as it is planned."""
        planned = self._planned.get(node, Planned(None))
        yield from self.layer(node, planned.form, planned.rank)

    def transposed(self, node: fx.Node) -> Iterator[Work]:
        """A transposed convolution: every input meets every weight of its channel."""
        x, weight = _operand(node, 0), _operand(node, 1)
        each = math.prod(int(size) for size in value(weight).shape[1:])
        moved = sum(map(self.nbytes, (x, weight, node)))
        yield Work(node.name, "product", 2.0 * self._numel(x) * each, moved, self.wide(node))

    def matmul(self, node: fx.Node) -> Iterator[Work]:
        """A product of two tensors, the last two operands but scalars."""
        a, b = [one for one in node.args if isinstance(one, fx.Node)][-2:]
        shared = self._size(value(a).shape[-1])
        moved = sum(map(self.nbytes, (a, b, node)))
        yield Work(node.name, "product", 2.0 * self._numel(node) * shared, moved, self.wide(node))

    def quantized_linear(self, node: fx.Node) -> Iterator[Work]:
        """`dexport::quantized_linear`."""
        weight, activation, mode, activation_block, micro = node.args[7:12]
        inputs, scales = int(value(_operand(node, 1)).shape[1]), int(value(_operand(node, 2)).shape[1])
        block = inputs // scales if scales > 1 else 0
        assert isinstance(activation_block, int)
        formats = str(micro or weight), "" if mode == "none" else str(micro or activation)
        yield from self.layer(node, form_of(*formats, block, activation_block, self.wide(node)))

    def quantized_conv(self, node: fx.Node) -> Iterator[Work]:
        """`dexport::quantized_conv`."""
        weight, activation, mode = node.args[5:8]
        yield from self.layer(node, form_of(str(weight), "" if mode == "none" else str(activation), 0, 0, self.wide(node)))

    def attention(self, node: fx.Node) -> Iterator[Work]:
        """Fused, or with scores that go through memory twice in each direction."""
        query, key = _operand(node, 0), _operand(node, 1)
        *batch, queries, head = (self._size(size) for size in value(query).shape)
        keys, heads = self._size(value(key).shape[-2]), math.prod(batch)
        moved = sum(map(self.nbytes, (*(_operand(node, i) for i in range(3)), node))) + 4 * self.scores(node)
        fp8 = _name(node) == "quantized_attention" and node.args[9] == _FLOAT8
        format = "fp8" if fp8 else self.wide(node)
        yield Work(node.name, "attention", attention_operations(queries, keys, heads, head), moved, format)

    def scores(self, node: fx.Node) -> float:
        """Bytes of the scores of an attention that no kernel fuses: of fp32, or of heads wider than `_WIDEST_HEAD`; 0 for others."""
        if _name(node) != "scaled_dot_product_attention":
            return 0.0
        query, key = _operand(node, 0), _operand(node, 1)
        if self.wide(node) != "fp32" and self._size(value(query).shape[-1]) <= _WIDEST_HEAD:
            return 0.0
        return self.nbytes(query) / self._size(value(query).shape[-1]) * self._size(value(key).shape[-2])

    def _between(self) -> float:
        """Bytes that operations other than products move."""
        moved = 0.0
        read: set[fx.Node] = set()
        for node in call_nodes(self._graph):
            if not is_tensor(node) or is_view(node) or is_product(node):
                continue
            read |= {root for one in node.all_input_nodes if (root := _root(one)).op == "placeholder" or is_product(root)}
            reading = list(readers(node))
            moved += self.nbytes(node) * any(reader.op == "output" or is_product(reader) for reader in reading)
            moved += 2 * self.nbytes(node) * (len(set(reading)) > 1)
        return moved + sum(self.nbytes(node) for node in read if is_tensor(node))

    def _size(self, size: Any) -> int:
        return int(size.node.expr.subs(self._symbols)) if isinstance(size, torch.SymInt) else int(size)

    def _numel(self, node: fx.Node) -> int:
        return math.prod(self._size(size) for size in value(node).shape)

    def nbytes(self, node: fx.Node) -> float:
        """Of the value of a node."""
        return float(self._numel(node) * value(node).dtype.itemsize)


def _name(node: fx.Node) -> str:
    """The operation of a node without its overload: "linear"."""
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", packet))


def _operand(node: fx.Node, index: int) -> fx.Node:
    operand = node.args[index]
    assert isinstance(operand, fx.Node)
    return operand


def is_view(node: fx.Node) -> bool:
    """Whether an operation only looks at what another made."""
    return _name(node) in _VIEWS


def is_product(node: fx.Node) -> bool:
    """Whether an operation is a linear, a convolution, an attention or a product of two tensors."""
    return _name(node) in _WRITERS


def _root(node: fx.Node) -> fx.Node:
    """What a view looks into."""
    while node.op == "call_function" and is_view(node):
        node = _operand(node, 0)
    return node


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """Who reads a value, through views."""
    for user in node.users:
        if user.op == "call_function" and is_view(user):
            yield from readers(user)
        elif user.op == "output" or is_tensor(user):
            yield user


_Writer = Callable[[Operations, fx.Node], Iterator[Work]]
_WRITERS: dict[str, _Writer] = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), Operations.plain),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), Operations.transposed),
    **dict.fromkeys(("matmul", "mm", "bmm", "addmm", "baddbmm"), Operations.matmul),
    **dict.fromkeys(("scaled_dot_product_attention", "quantized_attention"), Operations.attention),
    "quantized_linear": Operations.quantized_linear,
    "quantized_conv": Operations.quantized_conv,
}
"""Operation -> what writes it down as work."""
