"""Linears with integers of 4 bits in groups of 64 as one node of dexport's plugin `lowrank_linear` (plugins/lowrank_linear).

The branch beside such a linear, two products and a sum, goes into the node with it. `LowrankLinear` sums all of that in fp32 and rounds
once; everything else is what `quantized_linear` means. tensorrt_plugin.cpp says which inputs and attributes the node has.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import torch

from dexport.exporter.spellings import dialect
from dexport.exporter.spellings.site import Site, integer_bits, integer_step, integers_of
from dexport.exporter.spellings.writer import Writer
from dexport.exporter.stored import derived, plain, torch_type
from dexport.passes.graph import Weight
from dexport.plugins.lowrank_linear.packing import packed_codes, packed_scales
from dexport.plugins.lowrank_linear.shapes import GROUP

NODE = "LowrankLinear"
ACTIVATION_BITS = {"int4": 4, "int8": 8}
OUTPUT_MULTIPLE, _RANK_MULTIPLE, _LARGEST_RANK = 8, 16, 128
_CODES_IN_A_NUMBER = 8
_MODES = ("static", "table", "dynamic")
_DTYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Branch:
    """x D^T U^T beside a linear: D [R, I], U [O, R], and the node that adds it."""

    down: Weight
    up: Weight
    sum: ir.Node


def takes(site: Site) -> bool:
    """Whether the plugin computes a site, and TensorRT alone does not: there are groups on one side at least."""
    number, groups = site.weight_format, site.inputs // GROUP
    if site.mode not in _MODES or site.micro or site.centre is not None or site.dtype not in _DTYPES:
        return False
    integers = integer_step(number) is not None and integer_bits(number) == 4 and site.activation_format.name in ACTIVATION_BITS
    sizes = site.inputs % GROUP == 0 and site.weight.shape[0] % OUTPUT_MULTIPLE == 0
    grouped = site.blocks in (1, groups) and site.block in (0, GROUP) and (site.blocks > 1 or site.block == GROUP)
    one_scale = site.activation_scale is None or (_elements(site.activation_scale) == 1 and not site.block)
    return integers and sizes and grouped and one_scale


def lowrank_linear(site: Site, writer: Writer, branch: Branch | None) -> ir.Value:
    """y of the linear together with its branch."""
    scale = None if site.activation_scale is None else _flat(site, writer, site.activation_scale)
    factors = (None, None) if branch is None else _factors(site, writer, branch)
    tensors = (site.x, _codes(site, writer), _scales(site, writer), *factors, site.bias, scale)
    return writer.op(
        NODE,
        *(tensor for tensor in tensors if tensor is not None),
        domain=dialect.DOMAIN,
        activation_bits=ACTIVATION_BITS[site.activation_format.name],
        activation_block=site.block,
        gelu=0,
        branch=int(branch is not None),
        bias=int(site.bias is not None),
        gate=0,
        scale=int(scale is not None),
        plugin_version="1",  # the parser looks a plugin up by these two, whatever the node's domain
        plugin_namespace=dialect.DOMAIN,
    )


def branch_beside(node: ir.Node, writer: Writer) -> Branch | None:
    """The branch that is added to a linear's result and to nothing else, if the plugin can have one of its rank."""
    readers = list(node.outputs[0].uses())
    if len(readers) != 1 or readers[0].node.op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    total = readers[0].node
    up = _product(next((one for one in total.inputs if one is not node.outputs[0]), None), writer)
    down = None if up is None else _product(up[0], writer)
    if up is None or down is None or down[0] is not node.inputs[0] or down[1].shape[0] > _LARGEST_RANK:
        return None
    return Branch(down[1], up[1], total)


def _product(value: ir.Value | None, writer: Writer) -> tuple[ir.Value, Weight] | None:
    """a and W where a value is a W^T, W is a stored weight [O, I], and nothing else reads the value."""
    node = None if value is None or len(list(value.uses())) != 1 else value.producer()
    if node is None or node.op_type != "MatMul":
        return None
    a, turned = node.inputs
    transpose = None if turned is None else turned.producer()
    if a is None or transpose is None or transpose.op_type != "Transpose":
        return None
    weight = writer.source(transpose.inputs[0])
    return None if weight is None else (a, weight)


def _elements(value: ir.Value) -> int | None:
    sizes = None if value.shape is None else [size for size in value.shape if size != 1]
    return 1 if sizes == [] else None


def _flat(site: Site, writer: Writer, scale: ir.Value) -> ir.Value:
    """A scale of one element as [1]."""
    source = writer.source(scale)
    if source is not None:
        return writer.constant(source.load().reshape(1), site.dtype)
    return writer.op("Reshape", scale, writer.constant([1], ir.DataType.INT64))


def _codes(site: Site, writer: Writer) -> ir.Value:
    """int32 [O, I/8]: TensorRT has no constants of uint8."""
    number, shape = site.weight_format, (site.weight.shape[0], site.inputs // _CODES_IN_A_NUMBER)

    def change(tensor: torch.Tensor) -> torch.Tensor:
        return packed_codes(integers_of(number, tensor)).view(torch.int32)

    return writer.weight(f"{site.name}.codes", plain(derived(site.weight, shape, torch.int32, "packed for lowrank_linear", change)))


def _scales(site: Site, writer: Writer) -> ir.Value:
    """[1 or I/64, O], for the integers of `_codes`."""
    step, dtype, outputs = integer_step(site.weight_format), torch_type(site.dtype), site.weight.shape[0]
    assert step is not None

    def change(scale: torch.Tensor) -> torch.Tensor:
        return packed_scales((scale.float() * step).to(dtype).expand(outputs, -1))

    shape = (site.blocks, outputs)
    return writer.weight(f"{site.name}.scale", plain(derived(site.weight_scale, shape, dtype, f"times {step} for lowrank_linear", change)))


def _factors(site: Site, writer: Writer, branch: Branch) -> tuple[ir.Value, ir.Value]:
    """D and U with as many zero rows and columns as make the rank a multiple of 16."""
    (rank, inputs), outputs, dtype = branch.down.shape, branch.up.shape[0], torch_type(site.dtype)
    filled = -(-rank // _RANK_MULTIPLE) * _RANK_MULTIPLE
    padding = filled - rank

    def down(tensor: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(tensor.to(dtype), (0, 0, 0, padding))

    def up(tensor: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(tensor.to(dtype), (0, padding))

    how = f"of rank {filled} in {dtype}"
    return (
        writer.weight(f"{site.name}.down", plain(derived(branch.down, (filled, inputs), dtype, how, down))),
        writer.weight(f"{site.name}.up", plain(derived(branch.up, (outputs, filled), dtype, how, up))),
    )
