"""Row analysis: proves that axis 0 of a value is a batch axis whose rows do not see each other.

Hoisting needs it: a value computed for one timestep row may stand for all rows, all steps may be computed in one batched call, and the rows
of the unconditional and the conditional prompt may be taken apart, only if every operation on the way treats rows separately.

    FREE   no batch axis; the same for every row
    ROWS   axis 0 is the batch axis, row i depends on rows i only
    MIXED  not proven

The timestep is one row, which pipelines expand over the batch sooner or later: axis 0 of what is computed from it has size 1 until then.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable

import torch
from torch import fx

from dexport.passes.dependence import is_size
from dexport.passes.graph import BATCH, Graph, Kind, value

aten = torch.ops.aten


class Rows(enum.Enum):
    """How axis 0 of a value relates to the batch."""

    FREE = "free"
    ROWS = "rows"
    MIXED = "mixed"


def rows(graph: Graph) -> dict[fx.Node, Rows]:
    """The state of every node."""
    states: dict[fx.Node, Rows] = {}
    entering = {node: port for port, node in zip(graph.inputs, graph.placeholders().values())}
    for node in graph.module.graph.nodes:
        if node.op == "placeholder":
            port = entering[node]
            states[node] = Rows.ROWS if port.shape[:1] == (BATCH,) or Kind.STEP in port.kinds else Rows.FREE
        elif node.op == "call_function" and not is_size(node):
            states[node] = _transfer(node, states)
        else:
            states[node] = Rows.FREE
    return states


def _transfer(node: fx.Node, states: dict[fx.Node, Rows]) -> Rows:
    sources = [s for s in node.all_input_nodes if not is_size(s)]
    if any(states[s] is Rows.MIXED for s in sources):
        return Rows.MIXED
    moving = [s for s in sources if states[s] is Rows.ROWS]
    if not moving:
        return Rows.FREE if not _has_batch_axis(node) else Rows.ROWS if node.target in _EQUAL_ROWS else Rows.MIXED
    if node.target is operator.getitem:
        return Rows.ROWS
    rule = _RULES.get(node.target)
    if rule is None:
        rule = _pointwise if torch.Tag.pointwise in getattr(node.target, "tags", ()) else _never
    return Rows.ROWS if rule(node, moving) else Rows.MIXED


def _has_batch_axis(node: fx.Node) -> bool:
    result = node.meta.get("val")
    return isinstance(result, torch.Tensor) and result.dim() > 0 and isinstance(result.shape[0], torch.SymInt)


_EQUAL_ROWS = {  # operations that make a batch axis with the same content in every row
    aten.expand.default,
    aten.full.default,
    aten.zeros.default,
    aten.ones.default,
    aten.new_full.default,
    aten.new_zeros.default,
    aten.new_ones.default,
}


def _pointwise(node: fx.Node, moving: list[fx.Node]) -> bool:
    # Broadcasting aligns the last axes, so an operand's axis 0 is the result's axis 0 only if both have the same rank.
    return all(value(s).dim() == value(node).dim() and _as_long(s, node) for s in moving)


def _as_long(source: fx.Node, node: fx.Node) -> bool:
    """Whether axis 0 keeps its length, or goes from one row to the batch; one row that becomes seven is no axis of rows any more."""
    before, after = value(source).shape[0], value(node).shape[0]
    return str(before) == str(after) or (before == 1 and isinstance(after, torch.SymInt))


def _never(node: fx.Node, moving: list[fx.Node]) -> bool:
    return False


def _first_operand(node: fx.Node, moving: list[fx.Node]) -> bool:
    return moving == [node.args[0]] and value(moving[0]).dim() >= 2


def _normalized(node: fx.Node, moving: list[fx.Node]) -> bool:
    shape = node.args[1]
    return _first_operand(node, moving) and isinstance(shape, list | tuple) and len(shape) < value(moving[0]).dim()


def _convolved(node: fx.Node, moving: list[fx.Node]) -> bool:
    # An input of one rank less than the kernel has no batch axis: axis 0 are channels.
    kernel = node.args[1]
    return _first_operand(node, moving) and isinstance(kernel, fx.Node) and value(kernel).dim() == value(moving[0]).dim()


def _indices(node: fx.Node, moving: list[fx.Node]) -> bool:
    return moving == [node.args[1]]


def _same_rank(node: fx.Node, moving: list[fx.Node]) -> bool:
    return value(node).dim() >= 3 and all(value(s).dim() == value(node).dim() and _as_long(s, node) for s in moving)


def _axis(position: int, default: int) -> Callable[[fx.Node, list[fx.Node]], bool]:
    """The operation works along one axis, given at `position`, that must not be axis 0."""

    def rule(node: fx.Node, moving: list[fx.Node]) -> bool:
        axis = node.args[position] if len(node.args) > position else node.kwargs.get("dim", default)
        rank = value(moving[0]).dim() + (1 if node.target in (aten.unsqueeze.default, aten.stack.default) else 0)
        axes = axis if isinstance(axis, list | tuple) else [axis]
        return all(isinstance(a, int) and a % rank != 0 for a in axes) and all(value(s).dim() == value(moving[0]).dim() for s in moving)

    return rule


def _transposed(node: fx.Node, moving: list[fx.Node]) -> bool:
    rank = value(moving[0]).dim()
    return all(isinstance(a, int) and a % rank != 0 for a in node.args[1:3])


def _permuted(node: fx.Node, moving: list[fx.Node]) -> bool:
    order = node.args[1]
    return isinstance(order, list | tuple) and bool(order[0] == 0)


def _reshaped(node: fx.Node, moving: list[fx.Node]) -> bool:
    before, after = value(moving[0]), value(node)
    return bool(after.dim() > 0 and str(before.shape[0]) == str(after.shape[0]))


def _expanded(node: fx.Node, moving: list[fx.Node]) -> bool:
    return bool(value(moving[0]).dim() == value(node).dim())


def _flattened(node: fx.Node, moving: list[fx.Node]) -> bool:
    return len(node.args) > 1 and isinstance(node.args[1], int) and node.args[1] > 0


_RULES: dict[object, Callable[[fx.Node, list[fx.Node]], bool]] = {
    aten.linear.default: _first_operand,
    aten.layer_norm.default: _normalized,
    aten.rms_norm.default: _normalized,
    aten.group_norm.default: _first_operand,
    aten.conv1d.default: _convolved,
    aten.conv2d.default: _convolved,
    aten.conv3d.default: _convolved,
    aten.embedding.default: _indices,
    aten.scaled_dot_product_attention.default: _same_rank,
    aten.matmul.default: _same_rank,
    aten.bmm.default: _same_rank,
    aten._softmax.default: _axis(1, -1),
    aten.softmax.int: _axis(1, -1),
    aten.mean.dim: _axis(1, 0),
    aten.sum.dim_IntList: _axis(1, 0),
    aten.cat.default: _axis(1, 0),
    aten.stack.default: _axis(1, 0),
    aten.split.Tensor: _axis(2, 0),
    aten.split_with_sizes.default: _axis(2, 0),
    aten.chunk.default: _axis(2, 0),
    aten.unbind.int: _axis(1, 0),
    aten.select.int: _axis(1, 0),
    aten.slice.Tensor: _axis(1, 0),
    aten.unsqueeze.default: _axis(1, 0),
    aten.squeeze.dim: _axis(1, 0),
    aten.squeeze.dims: _axis(1, 0),
    aten.transpose.int: _transposed,
    aten.permute.default: _permuted,
    aten.reshape.default: _reshaped,
    aten.expand.default: _pointwise,
    aten.flatten.using_ints: _flattened,
    aten._to_copy.default: _pointwise,
}
