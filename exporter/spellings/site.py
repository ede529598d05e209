"""A quantized operation of an ONNX graph with its operands read: what the spellings work from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir
import torch

from dexport.errors import Failure
from dexport.exporter.spellings import dialect
from dexport.exporter.spellings.writer import Writer
from dexport.passes.graph import Weight
from dexport.plugins.formats import Format, format_of

_LARGEST_INT8 = 127.0
_UNUSED = "int8"  # of activations that stay as they are


@dataclass(frozen=True)
class Window:
    """How the kernel of a convolution moves: per spatial axis, and the number of groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Site:
    """One `dexport::quantized_linear` or `quantized_conv`; the operands are those of their references (plugins/).

    Attributes:
        name: of the weight in the graph; initializers that a spelling makes are named after it.
        dtype: of x and of the result.
        window: None for a linear.
    """

    name: str
    dtype: ir.DataType
    x: ir.Value
    weight: Weight
    weight_scale: Weight
    weight_global: Weight | None
    bias: ir.Value | None
    activation_scale: ir.Value | None
    centre: ir.Value | None
    weight_format: Format
    activation_format: Format
    mode: str
    block: int
    micro: str
    window: Window | None

    @property
    def inputs(self) -> int:
        """Input channels of a linear."""
        return self.weight.shape[1]

    @property
    def blocks(self) -> int:
        """Scales per output channel."""
        return self.weight_scale.shape[1] if self.window is None else 1

    @property
    def form(self) -> str:
        """What it is, in words, for messages."""
        size = f"block {self.inputs // self.blocks}" if self.blocks > 1 else "channel" if self.weight_scale.shape[0] > 1 else "tensor"
        kind = "" if self.mode == "none" else f", activations {self.micro or self.activation_format.name} {self.mode}"
        return f"weights {self.micro or self.weight_format.name} per {size}{kind}{f' per block {self.block}' if self.block else ''}"


def read_site(node: ir.Node, writer: Writer) -> Site:
    """The site of a node of the domain "dexport".

    Raises:
        Failure: codes or scales of the weight are computed in the graph instead of stored.
    """
    linear = node.op_type == dialect.LINEAR
    tensors = dialect.LINEAR_TENSORS if linear else dialect.CONVOLUTION_TENSORS
    operands = dict(zip(tensors, [*node.inputs, *[None] * len(tensors)], strict=False))
    x, output = operands["x"], node.outputs[0]
    assert x is not None and output.dtype is not None
    name = str(operands["weight"].name) if operands["weight"] is not None else ""
    read = {key: writer.source(operands.get(key)) for key in ("weight", "weight_scale", "weight_global")}
    weight, scale = read["weight"], read["weight_scale"]
    if weight is None or scale is None:
        raise Failure(name, expected="codes and scales that are weights", got="computed ones", fix="report this")
    text, attributes = node.attributes.get_string, node.attributes
    window = None if linear else _window(node)
    return Site(
        name,
        output.dtype,
        x,
        weight,
        scale,
        read["weight_global"],
        operands["bias"],
        operands["activation_scale"],
        operands.get("centre"),
        format_of(text("weight_format")),
        format_of(text("activation_format") or _UNUSED),
        text("activation_mode"),
        attributes.get_int("activation_block") if linear else 0,
        text("micro") if linear else "",
        window,
    )


def _window(node: ir.Node) -> Window:
    stride, padding, dilation = (tuple(node.attributes.get_ints(key) or ()) for key in ("stride", "padding", "dilation"))
    return Window(stride, padding, dilation, node.attributes.get_int("groups") or 1)


def integer_step(number: Format) -> float | None:
    """The largest power of two of which every number of the format is a multiple of at most 127; None if there is none.

    int4 and e1m2 have codes of 4 bits then (e1m2 is an int4 grid times 0.5); e2m1 times 2, e3m0 times 4 and e2m3 times 8 are int8.
    """
    if number.is_integer:
        return 1.0
    if number.code_dtype is not torch.uint8:
        return None
    grid = number.grid()
    step = float(grid[grid > 0].min())
    multiples = grid / step
    return step if bool((multiples == multiples.round()).all()) and number.largest / step <= _LARGEST_INT8 else None


def integer_bits(number: Format) -> int:
    """4 where the integers of a format fit into INT4, else 8."""
    step = integer_step(number)
    assert step is not None
    return 4 if number.largest / step <= 7 and number.lowest / step >= -8 else 8


def integers_of(number: Format, codes: torch.Tensor) -> torch.Tensor:
    """Codes of a format -> the integers that they are multiples of `integer_step`, int8."""
    step = integer_step(number)
    assert step is not None
    return codes if number.is_integer else (number.decode(codes, torch.float32) / step).to(torch.int8)


def scalar_constant(writer: Writer, value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds, else None."""
    source = writer.source(value)
    return float(source.load()) if source is not None and math.prod(source.shape) == 1 else None
