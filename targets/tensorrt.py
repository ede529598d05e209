"""Facts about versions of TensorRT and TensorRT-RTX that decide what a target can take."""

from dexport.targets.source import Source

Version = tuple[int, ...]

RTX_COMPUTE_CAPABILITIES = frozenset({75, 80, 86, 89, 120, 121})
"""SMs that TensorRT-RTX compiles for: its ComputeCapability enumeration, seen in tensorrt_rtx 1.7.1."""

KIT_MINIMUM: Version = (10, 3)
"""Oldest TensorRT that a build kit is written for. Strongly typed networks exist since 9.1, INT4 and IPluginV3 since 10.0, and
10.3 is the oldest version with all of them that any JetPack contains (6.1)."""

RTX_OPSET = 23
OPSET_SOURCE = Source("onnx-tensorrt docs/operators.md of the 10.1 and 10.16 releases", "read")

_LAST_OPSET: tuple[tuple[Version, int], ...] = (((10, 13), 24), ((10, 9), 22), ((10, 0), 20), ((8, 5), 17))


def last_opset(version: Version) -> int:
    """Highest ONNX opset that the parser of this TensorRT documents; the lowest is 9 for all of them.

    Raises:
        ValueError: for a TensorRT older than 8.5.
    """
    for since, opset in _LAST_OPSET:
        if version >= since:
            return opset
    raise ValueError(f"TensorRT version: expected 8.5 or newer, got {dotted(version)}")


def dotted(version: Version) -> str:
    """(10, 3) as "10.3"."""
    return ".".join(str(part) for part in version)
