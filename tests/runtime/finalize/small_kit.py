"""A kit of a few kilobytes: a denoiser that is the same at two sizes and a quantized decoder, with golden inputs and outputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from dexport.exporter.asked_precision import asked_precisions
from dexport.runtime.builders.builder import profiles_to_json
from dexport.runtime.builders.plugins import plugin_sources
from dexport.runtime.bundle_writer import BundleWriter
from dexport.runtime.finalize.precision import asked_to_json
from dexport.runtime.manifest import Component, Golden, Manifest, Model, Plugin, Port, Variant

WIDTH = 64
PROFILE = {"x": ((1, WIDTH), (2, WIDTH), (4, WIDTH))}
_SCALE = 0.05


def small_kit(out: Path, target: str = "cpu", *, golden_offset: float = 0.0, ballast: int = 0, plugin: str = "", change: str = "") -> Path:
    """Writes the kit.

    Args:
        target: "cpu" or a Jetson.
        golden_offset: added to what the decoder is to give, to make the golden test fail.
        ballast: bytes of a file that only makes it larger; nothing compresses or shortens it.
        plugin: whose sources it has; no model of it has the node.
        change: added to its kernel, which makes it another plugin than dexport's own.
    """
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((WIDTH, WIDTH), np.float32)
    codes = draw.integers(-127, 128, (WIDTH, WIDTH), np.int8)
    x = draw.standard_normal((2, WIDTH), np.float32)
    rounded = np.clip(np.round(x / _SCALE), -128, 127) * _SCALE
    outputs = {"denoiser": x @ weight, "decoder": (rounded @ (codes * _SCALE)).astype(np.float32) + golden_offset}
    with BundleWriter(out) as writer:
        for folder in ("graphs", "golden"):
            (writer.directory / folder).mkdir()
        for stem in ("denoiser-64x64", "denoiser-64x128"):
            _write(writer.directory / f"graphs/{stem}.onnx", _float_model(weight), "denoiser.data")
        _write(writer.directory / "graphs/decoder.onnx", _quantized_model(codes), "decoder.data")
        for name, y in outputs.items():
            save_file({"x": x}, writer.directory / f"golden/{name}-inputs.safetensors")
            save_file({"y": y}, writer.directory / f"golden/{name}-outputs.safetensors")
        if ballast:
            (writer.directory / "ballast.bin").write_bytes(draw.bytes(ballast))
        plugins = (_with_sources(writer.directory, plugin, change),) if plugin else ()
        return writer.finish(dataclasses.replace(_manifest(writer.directory, target), plugins=plugins))


def _with_sources(folder: Path, plugin: str, change: str) -> Plugin:
    sources = plugin_sources(plugin)
    for relative, path in sources.items():
        place = folder / "plugins" / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(path.read_text(encoding="utf-8") + (change if path.suffix == ".cu" else ""), encoding="utf-8")
    return Plugin(name=plugin, files=tuple(f"plugins/{relative}" for relative in sources))


def _write(path: Path, model: onnx.ModelProto, data: str) -> None:
    (path.parent / data).unlink(missing_ok=True)
    onnx.save(model, str(path), save_as_external_data=True, location=data, size_threshold=256)


def _model(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> onnx.ModelProto:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _float_model(weight: np.ndarray[Any, Any]) -> onnx.ModelProto:
    return _model([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], [numpy_helper.from_array(weight, "w")])


def _quantized_model(codes: np.ndarray[Any, Any]) -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["w"], name="weight"),
        helper.make_node("MatMul", ["d", "w"], ["y"], name="quantized_product"),
    ]
    scale = numpy_helper.from_array(np.array(_SCALE, np.float32), "scale")
    return _model(nodes, [scale, numpy_helper.from_array(np.array(0, np.int8), "zero"), numpy_helper.from_array(codes, "codes")])


def _manifest(folder: Path, target: str) -> Manifest:
    backend = "openvino-kit" if target == "cpu" else "tensorrt-kit"
    port = Port(dtype="float32", shape=("batch", WIDTH))

    def variant(stem: str, size: tuple[int, int] | None) -> Variant:
        files = (f"graphs/{stem}.onnx", f"graphs/{stem.split('-')[0]}.data")
        kernels = asked_to_json(asked_precisions(folder / files[0]))
        return Variant(size=size, artifact=files[0], format=backend, files=files, kernels=kernels, profiles=profiles_to_json([PROFILE]))

    common: dict[str, Any] = {"inputs": {"x": port}, "outputs": {"y": port}, "parameters": WIDTH**2, "precision": "fp32"}
    denoiser = (variant("denoiser-64x64", (64, 64)), variant("denoiser-64x128", (64, 128)))
    golden = tuple(
        Golden(inputs=f"golden/{name}-inputs.safetensors", outputs=f"golden/{name}-outputs.safetensors", component=name, tolerance=1e-3)
        for name in ("denoiser", "decoder")
    )
    return Manifest(
        dexport="0.1.0",
        created="2026-01-31T12:00:00Z",
        model=Model(class_name="PixArtAlphaPipeline", name="small", sha256="0" * 64),
        family="pixart",
        target=target,
        backend=backend,
        precision="fp32",
        config={},
        components={
            "denoiser": Component(variants=denoiser, weight_bytes=4 * WIDTH**2, **common),
            "decoder": Component(variants=(variant("decoder", None),), weight_bytes=WIDTH**2, **common),
        },
        sizes=((64, 64), (64, 128)),
        golden=golden,
    )


def without_golden(path: Path, out: Path) -> Path:
    """The same bundle without golden runs."""
    from dexport.runtime.bundle import open_bundle
    from dexport.runtime.bundle_writer import copy_file

    bundle = open_bundle(path)
    with BundleWriter(out) as writer:
        for relative in bundle.manifest.files:
            copy_file(bundle, relative, writer.directory / relative)
        return writer.finish(dataclasses.replace(bundle.manifest, golden=()))
