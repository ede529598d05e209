"""The denoiser as a plain ONNX file, quantized by ONNX Runtime's own quantizer and run by it.

Static models run with graph optimizations off, so that what is measured is the arithmetic that the file says: on processors without VNNI
the fused integer kernels saturate in 16 bits. The dynamic quantizer's weights are unsigned for the same reason (onnxruntime.ai,
"Quantize ONNX models", section on U8S8).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cpu_loop import plain_export
from quality_data import TOKENS, Denoiser, Example, Quantized, average_bits, calibrate, loop_linears, torch_denoiser

PICTURES = 8
"""Of one call: the file has fixed shapes, twice as many rows."""
Feed = dict[str, np.ndarray]


def export(example: Example, path: Path) -> dict[str, str]:
    """Writes the denoiser as a plain user would; site name -> name of its node in the file, for the loop's linears."""
    import onnx

    rows = 2 * PICTURES
    arguments = (torch.randn(rows, 4, 16, 16), torch.randn(rows, TOKENS, 96), torch.ones(rows, TOKENS), torch.full((rows,), 500.0))
    plain_export(example.pipeline, path, arguments)
    wanted, found = loop_linears(example.transformer), {}
    for node in onnx.load(path).graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), "[]")
        site = next((s for s in (scope.removeprefix("model.") for scope in ast.literal_eval(scopes)) if s in wanted), None)
        if site and node.op_type in ("MatMul", "Gemm"):
            found[site] = node.name
    if set(found) != set(wanted):
        raise RuntimeError(f"the exported file lacks these linears: {sorted(set(wanted) - set(found))}")
    return found


def feeds(example: Example, names: list[str]) -> list[Feed]:
    """The inputs of every call of the calibration run, in order."""
    recorded: list[Feed] = []
    original = torch_denoiser(example.transformer)

    def record(*arguments: torch.Tensor) -> torch.Tensor:
        recorded.append(feed(names, arguments))
        return original(*arguments)

    calibrate(example, record, PICTURES)
    return recorded


def feed(names: list[str], arguments: tuple[torch.Tensor, ...]) -> Feed:
    """Named inputs for one call; rows are repeated up to the file's number."""
    rows = torch.arange(2 * PICTURES) % arguments[0].shape[0]
    return {name: np.ascontiguousarray(value[rows].numpy()) for name, value in zip(names, arguments, strict=True)}


def numpy_denoiser(run: Any, names: list[str]) -> Denoiser:
    """`run(feed) -> output` as a Denoiser."""

    def call(*arguments: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.array(run(feed(names, arguments))))[: arguments[0].shape[0], :4]

    return call


def input_names(path: Path) -> list[str]:
    """Names of the file's inputs, in order."""
    import onnx

    return [value.name for value in onnx.load(path).graph.input]


def dynamic(example: Example, folder: Path, nodes: dict[str, str]) -> Quantized:
    """`quantize_dynamic`: uint8 activations with a range per call and tensor, uint8 weights per output channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = folder / "dynamic.onnx"
    quantize_dynamic(folder / "plain.onnx", path, nodes_to_quantize=list(nodes.values()), per_channel=True, weight_type=QuantType.QUInt8)
    return Quantized("onnxruntime dynamic", "int8 channel", "int8 tensor dynamic", _bits(example), _session(path, True), PICTURES)


def static(example: Example, folder: Path, nodes: dict[str, str], recorded: list[Feed], alone: bool) -> Quantized:
    """`quantize_static` as documented: Q/DQ, signed int8, min-max, weights per output channel.

    Left to itself this quantizer rounds the linears' outputs too, and where a linear reads the residual stream it rounds the stream for
    everybody, which nobody else here does.

    Args:
        alone: keep it from both: no outputs, and every linear reads through an Identity of its own.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[Feed] = iter(recorded)

        def get_next(self) -> Feed | None:
            return next(self.rest, None)

    path, source = folder / "static.onnx", folder / "plain.onnx"
    extra = {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm", "Identity"]} if alone else {}
    if alone:
        source = _set_apart(source, folder / "apart.onnx", set(nodes.values()))
    options = {"quant_format": QuantFormat.QDQ, "per_channel": True, "nodes_to_quantize": list(nodes.values())}
    quantize_static(source, path, Reader(), **options, extra_options=extra)
    return Quantized(
        "onnxruntime static" + (", linears alone" if alone else ""),
        "int8 channel",
        "int8 tensor",
        _bits(example),
        _session(path, False),
        PICTURES,
    )


def _set_apart(source: Path, path: Path, linears: set[str]) -> Path:
    """Writes the file with an Identity before the input of every one of `linears`."""
    import onnx

    model = onnx.load(source)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.name in linears:
            own = f"{node.name}_input"
            nodes.append(onnx.helper.make_node("Identity", [node.input[0]], [own], name=f"{own}_identity"))
            node.input[0] = own
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    return path


def _bits(example: Example) -> float:
    return average_bits(loop_linears(example.transformer), 8, lambda name, linear: 2 * linear.out_features)  # scales, zero points


def _session(path: Path, optimized: bool) -> Denoiser:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return numpy_denoiser(lambda values: session.run(None, values)[0], [i.name for i in session.get_inputs()])
