"""Number formats, and which of them a backend takes on which hardware, as one table.

A format is legal when the backend has it, the runtime is new enough and the compute capability is listed. Each answer
carries its reason, because "no" without a reason sends the user searching and "yes" sometimes has a catch.
"""

from dataclasses import dataclass
from typing import Literal

from dexport.targets.tensorrt import Version, dotted

Backend = Literal["openvino", "onnxruntime-cpu", "onnxruntime-cuda", "tensorrt-rtx", "tensorrt-kit"]

FORMATS = ("fp32", "fp16", "bf16", "int8", "int4-weights", "int4", "fp8", "nvfp4")
"""All formats dexport knows. ``int8``, ``int4`` and ``fp8`` quantize weights and activations; ``int4-weights`` only weights."""

PRECISIONS = ("fp32", "fp16", "bf16")
"""The formats a whole pipeline can be built in."""


@dataclass(frozen=True)
class Support:
    """An answer with its reason; true in a boolean context when the answer is yes."""

    yes: bool
    reason: str

    def __bool__(self) -> bool:
        return self.yes


@dataclass(frozen=True)
class Rule:
    """When a backend takes a format.

    Attributes:
        allowed: False where the backend never takes it.
        reason: why, or what to know about it.
        sms: compute capabilities (8.7 is 87) that have it; None: all.
        since: first version of the runtime that has it; None: all.
    """

    allowed: bool
    reason: str
    sms: frozenset[int] | None = None
    since: Version | None = None


_BF16 = frozenset({80, 86, 87, 89, 90, 100, 103, 110, 120, 121})
_FP8 = frozenset({89, 90, 100, 103, 110, 120, 121})
_FP4 = frozenset({100, 103, 110, 120, 121})
_RTX_FP4 = frozenset({120, 121})

_NATIVE = Rule(True, "native")
_NO_W4A4 = Rule(False, "its INT4 is weight-only: 4-bit activations need a kernel of one's own")

PLUGINS: dict[Backend, tuple[str, ...]] = {"tensorrt-kit": ("lowrank_linear",)}
"""Backend -> folders of dexport's plugins that engines for it can be built with."""

RULES: dict[Backend, dict[str, Rule]] = {
    "tensorrt-kit": {
        "fp32": _NATIVE,
        "fp16": _NATIVE,
        "bf16": Rule(True, "tensor cores multiply bf16 from SM 8.0 on", sms=_BF16),
        "int8": Rule(True, "explicit symmetric Q/DQ"),
        "int4-weights": Rule(
            True, "block-wise weights; the parser takes INT4 since 10.0, ONNX defines it from opset 21", sms=_BF16, since=(10, 0)
        ),
        "int4": Rule(True, "dexport's plugin lowrank_linear, from SM 8.0 on", sms=_BF16, since=(10, 3)),
        "fp8": Rule(True, "fp8 needs SM 8.9 or newer", sms=_FP8, since=(10, 2)),
        "nvfp4": Rule(True, "fp4 needs Blackwell (SM 10.0 or newer)", sms=_FP4, since=(10, 8)),
    },
    "tensorrt-rtx": {
        "fp32": _NATIVE,
        "fp16": _NATIVE,
        "bf16": Rule(True, "TensorRT-RTX refuses bf16 on SM 7.5", sms=_BF16),
        "int8": Rule(True, "W8A8 compiles to int8 GEMMs although the support matrix lists only weight-only int8"),
        "int4-weights": Rule(True, "TensorRT-RTX refuses int4 weights on SM 7.5", sms=_BF16),
        "int4": _NO_W4A4,
        "fp8": Rule(True, "fp8 needs SM 8.9 or newer", sms=_FP8),
        "nvfp4": Rule(True, "fp4 needs SM 12.0 or 12.1", sms=_RTX_FP4),
    },
    "openvino": {
        "fp32": _NATIVE,
        "fp16": Rule(True, "weights are stored in fp16 and computed in fp32: asked for f16 arithmetic, the CPU plugin may run bf16"),
        "bf16": Rule(True, "on processors with AVX512-BF16 or AMX; others compute in fp32"),
        "int8": Rule(True, "pays only with VNNI or AMX"),
        "int4-weights": Rule(True, "compressed weights"),
        "int4": Rule(False, "OpenVINO has no 4-bit activations"),
        "fp8": Rule(False, "no processor has fp8 arithmetic that OpenVINO uses"),
        "nvfp4": Rule(False, "no processor has fp4 arithmetic"),
    },
    "onnxruntime-cpu": {
        "fp32": _NATIVE,
        "fp16": Rule(True, "weights are stored in fp16; most operators run in fp32 between casts"),
        "bf16": Rule(False, "ONNX Runtime's CPU provider has no bf16 MatMul"),
        "int8": Rule(True, "pays only with VNNI or AMX"),
        "int4-weights": Rule(True, "MatMulNBits"),
        "int4": Rule(False, "ONNX Runtime has no 4-bit activations"),
        "fp8": Rule(False, "ONNX Runtime's CPU provider has no fp8 MatMul"),
        "nvfp4": Rule(False, "ONNX Runtime has no fp4 MatMul"),
    },
    "onnxruntime-cuda": {
        "fp32": _NATIVE,
        "fp16": _NATIVE,
        "bf16": Rule(True, "on a GPU with SM 8.0 or newer"),
        "int8": Rule(False, "ONNX Runtime's CUDA provider does not fuse int8 Q/DQ into a MatMul"),
        "int4-weights": Rule(True, "MatMulNBits"),
        "int4": Rule(False, "ONNX Runtime has no 4-bit activations"),
        "fp8": Rule(False, "ONNX Runtime's CUDA provider does not fuse fp8 Q/DQ into a MatMul"),
        "nvfp4": Rule(False, "ONNX Runtime has no fp4 MatMul"),
    },
}


def support(format: str, *, backend: Backend, sm: int | None = None, version: Version | None = None) -> Support:
    """Whether a backend takes a format.

    Args:
        format: one of ``FORMATS``.
        backend: what runs the model.
        sm: compute capability times ten (87 for Orin); None where the backend runs on whatever GPU or processor is there.
        version: of TensorRT, where the backend is tied to one.

    Raises:
        KeyError: if the format is not one of ``FORMATS``.
    """
    rule = RULES[backend][format]
    if rule.allowed and rule.sms is not None and sm is not None and sm not in rule.sms:
        return Support(False, rule.reason)
    if rule.allowed and rule.since is not None and version is not None and version < rule.since:
        return Support(False, f"TensorRT has {format} since {dotted(rule.since)}, this one is {dotted(version)}")
    return Support(rule.allowed, rule.reason)
