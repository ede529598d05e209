"""Which quantized linears a target computes exactly, and what stands nearest where it cannot.

"Exactly" means that the target's own low-bit kernels compute what the operation means (plugins/quantized_linear), up to the order
of sums; a form that could only be imitated by rounding in 16 or 32 bits is not exact. `exporter/spellings` writes every form that
is exact here and refuses the others.

A plugin computes what the target's own compiler does not: `lowrank_linear` has linears with 4-bit integers in groups of 64. What its kernel
asks of single layers is checked by `exporter/plugin_layers.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dexport.exporter.spellings.lowrank import ACTIVATION_BITS
from dexport.exporter.spellings.quantized import FP4_OPSET
from dexport.exporter.spellings.site import integer_bits, integer_step
from dexport.passes.quantization.recipe import MICRO_FORMATS, ActivationSpec, Treatment, WeightSpec
from dexport.plugins.formats import format_of
from dexport.plugins.lowrank_linear.shapes import GROUP
from dexport.targets.formats import Backend, Support
from dexport.targets.target import Target

BLOCK_OPSET = 21
"""ONNX has INT4 and scales per block from here on."""
_YES = Support(True, "")
_FLOAT8 = ("e4m3", "e5m2")


@dataclass(frozen=True)
class _Abilities:
    """What the compiler of a backend takes.

    Attributes:
        integers: int8 GEMMs with one scale per tensor or output channel and any clipped integer format on both sides.
        weight_blocks: sizes of blocks of 4-bit weights, where only weights are quantized; None: any.
        wide_blocks: the same sizes for weights of 8 bits.
        activation_blocks: int8 activations with a dynamic scale per block, where the weights are 4-bit integers in the same blocks.
        float8_weights: float8 weights, where only weights are quantized.
        float4_weights: 4-bit floats that are no multiples of INT4 can be stored in 4 bits, where only weights are quantized.
    """

    integers: bool
    weight_blocks: frozenset[int] | None
    wide_blocks: bool = False
    activation_blocks: bool = False
    float8_weights: bool = False
    float4_weights: frozenset[str] = frozenset()


_NBITS_BLOCKS = frozenset({16, 32, 64, 128, 256})
_TENSORRT = _Abilities(integers=True, weight_blocks=frozenset({64, 128}))
_ABILITIES: dict[Backend, _Abilities] = {
    "tensorrt-rtx": _TENSORRT,
    "tensorrt-kit": _TENSORRT,
    "onnxruntime-cpu": _Abilities(True, _NBITS_BLOCKS, True, True, True, frozenset({"e2m1", "e3m0"})),
    "openvino": _Abilities(True, None, True, float8_weights=True, float4_weights=frozenset({"e2m1"})),
    "onnxruntime-cuda": _Abilities(False, _NBITS_BLOCKS, True),
}


def exact(target: Target, treatment: Treatment, *, convolution: bool = False) -> Support:
    """Whether the target computes a treatment's linears (or convolutions) exactly; the reason says what it lacks."""
    weights, activations = treatment.weights, treatment.activations
    if weights is None:
        return _YES
    if convolution and not (answer := _convolution(target, weights, activations)):
        return answer
    if not convolution and needs_lowrank_linear(target, treatment):
        return _YES
    for weight in weights.format.split("|"):
        for activation in activations.format.split("|") if activations is not None else [""]:
            answer = _exact(target, weight, weights.block, activation, activations)
            if not answer:
                return answer
    return _YES


def needs_lowrank_linear(target: Target, treatment: Treatment) -> bool:
    """Whether the target computes the linears of a treatment by dexport's plugin of that name: by it, and by nothing of its own."""
    weights, spec = treatment.weights, treatment.activations
    if "lowrank_linear" not in target.plugins or weights is None or spec is None or weights.format in MICRO_FORMATS:
        return False
    numbers = [format_of(name) for name in weights.format.split("|")]
    integers = all(integer_step(number) is not None and integer_bits(number) == 4 for number in numbers)
    ranges = {"dynamic": ("tensor", "token", f"block-{GROUP}"), "static": ("tensor",), "table": ("tensor",)}
    scaled = spec.granularity in ranges.get(spec.mode, ()) and not spec.centred
    groups = {weights.block, spec.block}
    return integers and spec.format in ACTIVATION_BITS and scaled and GROUP in groups and groups <= {0, GROUP}


def _exact(target: Target, weight: str, block: int, activation: str, spec: ActivationSpec | None) -> Support:
    if weight in MICRO_FORMATS or activation in MICRO_FORMATS:
        return _two_levels(target, weight, activation)
    if spec is None:
        return _weights_alone(target, weight, block)
    return _both(target, weight, block, activation, spec)


def _convolution(target: Target, weights: WeightSpec, activations: ActivationSpec | None) -> Support:
    """What convolutions need on top of what linears need: integers on both sides."""
    if not _ABILITIES[target.backend].integers:
        return Support(False, "convolutions are not quantized here")
    sides = [*weights.format.split("|"), *(activations.format.split("|") if activations is not None else [])]
    floats = next((name for name in sides if name in (*MICRO_FORMATS, *_FLOAT8)), None)
    return _YES if floats is None else Support(False, f"no convolution multiplies {floats}")


def _two_levels(target: Target, weight: str, activation: str) -> Support:
    if weight != activation or weight != "nvfp4":
        return Support(False, f"no kernel multiplies {weight} weights with {activation or '16-bit'} activations")
    if target.supports("nvfp4") and target.onnx_opset < FP4_OPSET:
        return Support(False, f"ONNX has FP4 from opset {FP4_OPSET} on, this target takes {target.onnx_opset}")
    return target.supports("nvfp4")


def _weights_alone(target: Target, weight: str, block: int) -> Support:
    abilities = _ABILITIES[target.backend]
    if weight in _FLOAT8:
        return Support(abilities.float8_weights, "float8 weights need float8 activations here")
    number = format_of(weight)
    if integer_step(number) is None:
        return Support(False, f"{weight} weights are no multiples of 8-bit integers")
    four = number.bits <= 4 and (integer_bits(number) == 4 or weight in abilities.float4_weights)
    if number.bits <= 4 and not four:
        return Support(False, f"{weight} has no 4-bit storage here")
    if not block:
        return _YES
    if not (four or abilities.wide_blocks):
        return Support(False, "weights of 8 bits have one scale per output channel here")
    if abilities.weight_blocks is not None and block not in abilities.weight_blocks:
        return Support(False, f"blocks have {' or '.join(map(str, sorted(abilities.weight_blocks)))} inputs here")
    if target.backend.startswith("tensorrt") and target.onnx_opset < BLOCK_OPSET:
        return Support(False, f"ONNX has scales per block from opset {BLOCK_OPSET} on, this target takes {target.onnx_opset}")
    return target.supports("int4-weights")


def _both(target: Target, weight: str, block: int, activation: str, spec: ActivationSpec) -> Support:
    abilities = _ABILITIES[target.backend]
    if activation in _FLOAT8 or weight in _FLOAT8:
        if not (weight == activation == "e4m3") or block or spec.block:
            return Support(
                False,
                f"no kernel multiplies {weight} weights with {activation} activations in blocks" if block else _pair(weight, activation),
            )
        return target.supports("fp8")
    numbers = format_of(weight), format_of(activation)
    if not numbers[1].is_integer or integer_step(numbers[0]) is None:
        return Support(False, _pair(weight, activation))
    if block and block == spec.block and activation == "int8" and spec.mode == "dynamic" and abilities.activation_blocks:
        return Support(integer_bits(numbers[0]) == 4, "scales per block of both sides need weights of 4 bits")
    if block or spec.block:
        return Support(False, "scales per block inside a sum are no single int8 GEMM")
    return Support(abilities.integers, target.supports("int8").reason)


def _pair(weight: str, activation: str) -> str:
    return f"no kernel multiplies {weight} weights with {activation} activations"


def nearest(target: Target, treatment: Treatment, *, convolution: bool = False) -> Treatment:
    """The treatment most like this one that the target computes exactly, for linears or for convolutions.

    Changed in this order, until it fits: the activation's granularity, floats to integers of as many bits, blocks of weights to 8 bits per
    output channel; 4-bit activations in blocks become 16 bits, because 4-bit weights in blocks are what such recipes are about.
    """
    for candidate in _candidates(treatment):
        if exact(target, candidate, convolution=convolution):
            return candidate
    return replace(treatment, weights=None, activations=None, low_rank=None)


def _candidates(treatment: Treatment) -> Iterator[Treatment]:
    weights, activations = treatment.weights, treatment.activations
    if weights is None:
        yield treatment
        return
    yield treatment
    channel8 = WeightSpec(format="int8", range=weights.range if weights.range != "float-search" else "mse", rounding=weights.rounding)
    integer = replace(channel8, format=_integer(weights.format))
    blocks = replace(channel8, format="int4", granularity=f"block-{weights.block if weights.block in (64, 128) else 64}")
    if activations is None:
        yield from (replace(treatment, weights=w) for w in (blocks, integer, channel8) if w is not blocks or _bits(weights.format) <= 4)
        return
    plain = replace(activations, format=_integer(activations.format), granularity="token" if activations.block else activations.granularity)
    if plain.mode == "dynamic":
        plain = replace(plain, granularity="token")
    if _bits(activations.format) <= 4 and weights.block:
        yield replace(treatment, weights=blocks, activations=None)
    if weights.block and _bits(weights.format) <= 4 and plain.format == "int8" and plain.mode == "dynamic":
        yield replace(treatment, activations=replace(plain, granularity=f"block-{weights.block}"))
    for spec in (channel8,) if weights.block else (weights, integer, channel8):
        yield replace(treatment, weights=spec, activations=plain)
    yield replace(treatment, weights=blocks, activations=None)
    yield replace(treatment, weights=channel8, activations=None)


def _bits(formats: str) -> int:
    return max(4 if name in MICRO_FORMATS else format_of(name).bits for name in formats.split("|"))


def _integer(formats: str) -> str:
    """Integers of as many bits; what is an integer already, or several choices of one size, by the largest."""
    return f"int{max(2, _bits(formats))}"
