"""Targets that run on whatever machine is at hand, so that their speed and memory are not known beforehand."""

from dexport.targets.formats import Backend
from dexport.targets.source import Source
from dexport.targets.target import Target


def _host(device: str, name: str, backend: Backend, precision: str, opset: int, opset_source: Source) -> Target:
    return Target(
        id=device,
        device=device,
        name=name,
        backend=backend,
        onnx_opset=opset,
        default_precision=precision,
        memory_reserve_gib=1.0,
        sources={"onnx_opset": opset_source, "memory_reserve_gib": Source("operating system on a machine of its own", "memory")},
    )


_OPENVINO = Source("opset 23 models with Q/DQ, INT4 and FLOAT4E2M1 weights compiled by OpenVINO 2026.4", "measured")
_ONNXRUNTIME = Source("an opset 23 model loaded by ONNX Runtime 1.32", "measured")

HOSTS: tuple[Target, ...] = (
    _host("cpu", "This processor, OpenVINO", "openvino", "fp32", 23, _OPENVINO),
    _host("onnxruntime-cpu", "This processor, ONNX Runtime", "onnxruntime-cpu", "fp32", 23, _ONNXRUNTIME),
    _host("onnxruntime-cuda", "This machine's NVIDIA GPU, ONNX Runtime", "onnxruntime-cuda", "fp16", 23, _ONNXRUNTIME),
)
