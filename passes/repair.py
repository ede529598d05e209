"""Repairs of captured graphs: what the exporter leaves behind and what no runtime loads.

Each repair is one function (graph -> graph) named after the fault; `repair` runs them in order. All keep the values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from dexport.passes.graph import Graph, call_node, copied_nodes, is_tensor, value, with_nodes

aten = torch.ops.aten

_ASSERTIONS = {aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten.sym_constrain_range_for_size.default}
_COPIES = {aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default, aten.dropout.default}
_KEEPERS_OF_SHAPE = {
    aten._to_copy.default,
    aten.expand.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.reshape.default,
    aten.slice.Tensor,
}


def repair(graph: Graph) -> Graph:
    """All repairs, in order."""
    graph = drop_assertions(graph)
    graph = reshape_for_view(graph)  # before the copies go: a view may need the contiguous copy in front of it
    graph = drop_copies(graph)
    graph = cat_for_concat(graph)
    graph = cast_for_type_as(graph)
    graph = value_for_copy(graph)
    graph = stack_for_slice_scatter(graph)
    graph = nearest_for_nearest_exact(graph)
    graph = drop_identities(graph)
    graph = expand_for_repeat_interleave(graph)
    graph = permute_for_einsum(graph)
    graph = slice_for_split(graph)
    return constant_shape_for_reshape(graph)


def drop_assertions(graph: Graph) -> Graph:
    """Removes metadata assertions; they produce nothing and have no ONNX form."""
    nodes = copied_nodes(graph.module)
    for node in list(nodes.nodes):
        if node.target in _ASSERTIONS:
            nodes.erase_node(node)
    return with_nodes(graph, nodes)


def reshape_for_view(graph: Graph) -> Graph:
    """Turns view and _unsafe_view into reshape, which does not care how its input lies in memory."""

    def match(node: fx.Node) -> bool:
        return node.target in (aten.view.default, aten._unsafe_view.default)

    nodes = copied_nodes(graph.module)
    for node in filter(match, nodes.nodes):
        node.target = aten.reshape.default
    return with_nodes(graph, nodes)


def cat_for_concat(graph: Graph) -> Graph:
    """Turns the other names of cat into cat, so that passes know one."""

    def match(node: fx.Node) -> bool:
        return node.target in (aten.concat.default, aten.concatenate.default)

    nodes = copied_nodes(graph.module)
    for node in filter(match, nodes.nodes):
        node.target = aten.cat.default
    return with_nodes(graph, nodes)


def drop_copies(graph: Graph) -> Graph:
    """Removes copies and inference-time dropout."""
    return _bypass(graph, lambda node: node.target in _COPIES)


def nearest_for_nearest_exact(graph: Graph) -> Graph:
    """Upsampling by whole factors is the same for both kinds of nearest; the plain one becomes an ONNX Resize, the other GatherND."""
    nodes = copied_nodes(graph.module)
    for node in nodes.nodes:
        if node.target is not aten._upsample_nearest_exact2d.vec:
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        before, after = value(source).shape[2:], value(node).shape[2:]
        if all(isinstance(a, int) and isinstance(b, int) and b % a == 0 for a, b in zip(before, after)):
            node.target, node.args = aten.upsample_nearest2d.vec, (source, None, [b / a for a, b in zip(before, after)])
    return with_nodes(graph, nodes)


def cast_for_type_as(graph: Graph) -> Graph:
    """type_as(x, y) -> cast of x to y's type: the result no longer seems to depend on the values of y."""
    nodes = copied_nodes(graph.module)
    for node in nodes.nodes:
        if node.target is aten.type_as.default:
            node.target, node.args, node.kwargs = aten._to_copy.default, (node.args[0],), {"dtype": value(node).dtype}
    return with_nodes(graph, nodes)


def value_for_copy(graph: Graph) -> Graph:
    """copy(target, x) -> cast of x to the target's type, if the shapes are equal: what `target[...] = x` becomes."""
    nodes = copied_nodes(graph.module)
    for node in nodes.nodes:
        if node.target is not aten.copy.default:
            continue
        source = node.args[1]
        assert isinstance(source, fx.Node)
        if [str(size) for size in value(source).shape] == [str(size) for size in value(node).shape]:
            node.target, node.args, node.kwargs = aten._to_copy.default, (source,), {"dtype": value(node).dtype}
    return with_nodes(graph, nodes)


def stack_for_slice_scatter(graph: Graph) -> Graph:
    """out[..., 0::2] = a; out[..., 1::2] = b -> flatten(stack([a, b])): rotary embeddings are written this way."""
    nodes = copied_nodes(graph.module)
    for node in list(nodes.nodes):
        below = node.args[0] if node.target is aten.slice_scatter.default else None
        if not isinstance(below, fx.Node) or below.target is not aten.slice_scatter.default:
            continue
        axis, (first, second) = node.args[2], (_scattered(below), _scattered(node))
        if (first, second) != ((axis, 0, 2), (axis, 1, 2)) or not isinstance(axis, int):
            continue
        if not _fills(below, axis) or not _fills(node, axis):
            continue
        axis %= value(node).dim()
        with nodes.inserting_before(node):
            pair = call_node(nodes, aten.stack.default, [below.args[1], node.args[1]], axis + 1)
            node.replace_all_uses_with(call_node(nodes, aten.flatten.using_ints, pair, axis, axis + 1))
    return with_nodes(graph, nodes)


def _scattered(node: fx.Node) -> tuple[object, ...]:
    """(axis, start, step) of a slice_scatter."""
    return (*node.args[2:4], node.args[5] if len(node.args) > 5 else 1)


def _fills(node: fx.Node, axis: int) -> bool:
    """Whether what is scattered is half as long as the target: no start or end cuts it short."""
    source = node.args[1]
    return isinstance(source, fx.Node) and bool(value(source).shape[axis] * 2 == value(node).shape[axis])


def drop_identities(graph: Graph) -> Graph:
    """Removes casts to the same type, arithmetic with a neutral number, expands to the same shape, and squeezes of a size that is not 1.

    The last are legal in PyTorch and become an ONNX Squeeze that no runtime loads.
    """
    return _bypass(graph, _is_identity)


def _is_identity(node: fx.Node) -> bool:
    if not is_tensor(node) or not node.args or not isinstance(node.args[0], fx.Node) or not is_tensor(node.args[0]):
        return False
    before, after = value(node.args[0]), value(node)
    if before.dtype != after.dtype or [str(size) for size in before.shape] != [str(size) for size in after.shape]:
        return False
    if node.target in (aten.div.Tensor, aten.mul.Tensor):
        return not isinstance(node.args[1], fx.Node) and bool(node.args[1] == 1)
    return node.target in _KEEPERS_OF_SHAPE


def _bypass(graph: Graph, match: Callable[[fx.Node], bool]) -> Graph:
    nodes = copied_nodes(graph.module)
    for node in list(nodes.nodes):
        if match(node):
            source = node.args[0]
            assert isinstance(source, fx.Node)
            node.replace_all_uses_with(source)
            nodes.erase_node(node)
    return with_nodes(graph, nodes)


def expand_for_repeat_interleave(graph: Graph) -> Graph:
    """repeat_interleave(x [B, ...], n, 0) -> reshape(expand(unsqueeze(x, 1), [B, n, ...]), [B*n, ...]).

    Attention masks are repeated over heads this way; as an expand the repetition costs nothing and keeps the rows apart.
    """
    nodes = copied_nodes(graph.module)
    for node in list(nodes.nodes):
        if node.target is not aten.repeat_interleave.self_int or len(node.args) < 3 or node.args[2] != 0:
            continue
        source, repeats = node.args[0], node.args[1]
        assert isinstance(source, fx.Node) and isinstance(repeats, int)
        shape = [-1] * value(source).dim()
        with nodes.inserting_before(node):
            column = call_node(nodes, aten.unsqueeze.default, source, 1)
            wide = call_node(nodes, aten.expand.default, column, [-1, repeats, *shape[1:]])
        reader = next(iter(node.users)) if len(node.users) == 1 else None
        if reader is not None and reader.target is aten.reshape.default and tuple(value(reader).shape[:2]) == tuple(value(wide).shape[:2]):
            reader.args = (wide, reader.args[1])
        else:
            with nodes.inserting_before(node):
                flat = call_node(nodes, aten.flatten.using_ints, wide, 0, 1)
            node.replace_all_uses_with(flat)
        nodes.eliminate_dead_code()
    return with_nodes(graph, nodes)


def permute_for_einsum(graph: Graph) -> Graph:
    """einsum with one operand and no sum ("nhwpqc->nchpwq") -> permute."""
    nodes = copied_nodes(graph.module)
    for node in list(nodes.nodes):
        if node.target is not aten.einsum.default:
            continue
        equation, operands = node.args[0], node.args[1]
        assert isinstance(equation, str) and isinstance(operands, list | tuple)
        before, _, after = equation.replace(" ", "").partition("->")
        if len(operands) != 1 or sorted(before) != sorted(after) or len(set(before)) != len(before):
            continue
        with nodes.inserting_before(node):
            node.replace_all_uses_with(call_node(nodes, aten.permute.default, operands[0], [before.index(letter) for letter in after]))
        nodes.erase_node(node)
    return with_nodes(graph, nodes)


def slice_for_split(graph: Graph) -> Graph:
    """split, chunk and unbind -> one slice (or select) per piece, so that every value of the graph is one tensor."""
    nodes = copied_nodes(graph.module)
    for node in list(nodes.nodes):
        pieces = node.meta.get("val")
        if node.op != "call_function" or not isinstance(pieces, list | tuple) or node.target not in _SPLITS:
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        position = 1 if node.target is aten.unbind.int else 2
        axis = int(node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0))
        sizes = [1 if node.target is aten.unbind.int else int(p.shape[axis]) for p in pieces]
        for item in list(node.users):
            index = int(item.args[1])
            with nodes.inserting_before(item):
                if node.target is aten.unbind.int:
                    piece = call_node(nodes, aten.select.int, source, axis, index)
                else:
                    start = sum(sizes[:index])
                    piece = call_node(nodes, aten.slice.Tensor, source, axis, start, start + sizes[index])
            item.replace_all_uses_with(piece)
            nodes.erase_node(item)
        nodes.erase_node(node)
    return with_nodes(graph, nodes)


_SPLITS = {aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int}


def constant_shape_for_reshape(graph: Graph) -> Graph:
    """reshape(x, [batch, 6, -1]) -> reshape(x, [-1, 6, 16]): with one unknown size the shape is a constant of the ONNX file."""
    nodes = copied_nodes(graph.module)
    for node in nodes.nodes:
        if node.target is not aten.reshape.default:
            continue
        sizes = list(value(node).shape)
        if sum(not isinstance(size, int) for size in sizes) == 1:
            node.args = (node.args[0], [size if isinstance(size, int) else -1 for size in sizes])
    return with_nodes(graph, nodes)
