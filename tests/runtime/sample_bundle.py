"""A bundle of a few kilobytes that has one of everything, for the tests of reader and writer."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import save

from dexport.runtime.bundle_writer import BundleWriter
from dexport.runtime.manifest import (
    Component,
    FileEntry,
    Golden,
    Manifest,
    Model,
    Plugin,
    Port,
    ProgramEntry,
    Variant,
    manifest_to_json,
)

PLAN, LOOP, WEIGHTS, TABLES = "engines/decoder.plan", "graphs/loop.onnx", "graphs/loop.bin", "programs/main.safetensors"


def onnx_with_external_weights(**entries: str) -> bytes:
    """y = x + w, with w [2, 3] in float32 in the file `loop.bin`; `entries` replace or add entries of external data."""
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2, 3], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in ({"location": "loop.bin", "offset": "0", "length": "24"} | entries).items():
        weight.external_data.add(key=key, value=value)
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "loop", ports[:1], ports[1:], [weight])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]).SerializeToString()


def sample_files() -> dict[str, bytes]:
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    return {
        LOOP: onnx_with_external_weights(),
        WEIGHTS: weights.tobytes(),
        PLAN: b"machine code",
        "programs/main.json": b"{}",
        TABLES: save({"step": weights + 1, "row": np.arange(4, dtype=np.int64)}),
        "tokenizer/tokenizer.json": b"{}",
        "golden/in.safetensors": save({"x": weights + 2}),
        "golden/out.safetensors": save({"y": 2 * weights}),
        "report/empty.txt": b"",
    }


def sample_manifest() -> Manifest:
    """The manifest of `sample_files`, its `files` left to the writer."""
    port = Port(dtype="float32", shape=("batch", 3))
    loop = Variant(size=(64, 64), artifact=LOOP, format="onnx", files=(LOOP, WEIGHTS), kernels={"gemm": 1})
    plan = Variant(size=None, artifact=PLAN, format="tensorrt", files=(PLAN,), native=True)
    common: dict[str, Any] = {"inputs": {"x": port}, "outputs": {"y": port}, "parameters": 6, "weight_bytes": 24, "precision": "fp32"}
    text = {"name": "t5", "tokenizer": "tokenizer/tokenizer.json", "length": 8, "outputs": {"ids": "ids", "mask": None}, "template": None}
    return Manifest(
        dexport="0.1.0",
        created="2026-01-31T12:00:00Z",
        model=Model(class_name="PixArtAlphaPipeline", name="shapes", sha256="0" * 64),
        family="pixart",
        target="jetson-orin@jetpack-6.2",
        backend="tensorrt",
        precision="fp16",
        config={"steps": [20]},
        components={
            "loop": Component(variants=(loop,), islands=("norm",), note="denoiser", **common),
            "decoder": Component(variants=(plan,), **common),
        },
        text=(text,),
        sizes=((64, 64),),
        programs=(ProgramEntry(file="programs/main.json", tables=TABLES, scheduler="DDIM", steps=20, size=(64, 64)),),
        hoisting={"moved": 3},
        golden=(Golden(inputs="golden/in.safetensors", outputs="golden/out.safetensors", component="loop", tolerance=1e-3),),
    )


def write_sample(
    out: Path,
    *,
    weights_bytes: int | None = None,
    more: Mapping[str, bytes] = MappingProxyType({}),
    plugins: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Writes the sample bundle, as a folder or a `.dxb`.

    Args:
        weights_bytes: size of a file `weights.bin` of zeros in it.
        more: files that it has besides.
        plugins: entries of its manifest.
    """
    with BundleWriter(out) as writer:
        for relative, content in (sample_files() | dict(more)).items():
            path = writer.directory / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if weights_bytes is not None:
            (writer.directory / "weights.bin").touch()
            os.truncate(writer.directory / "weights.bin", weights_bytes)  # a hole, which takes no disk
        entries = tuple(Plugin(**{**entry, "files": tuple(entry["files"])}) for entry in plugins)
        return writer.finish(dataclasses.replace(sample_manifest(), plugins=entries))


def complete_manifest() -> Manifest:
    """The manifest as the writer completes it."""
    entries = {path: FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)) for path, content in sample_files().items()}
    return dataclasses.replace(sample_manifest(), files=entries)


def edited_manifest(edit: Callable[[dict[str, Any]], object]) -> bytes:
    """The sample's `manifest.json` after `edit` has changed its document in place."""
    document = json.loads(manifest_to_json(complete_manifest()))
    edit(document)
    return json.dumps(document).encode()
