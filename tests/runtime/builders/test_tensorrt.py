"""Flags for trtexec, its version, and the layers of an engine in the forms in which TensorRT has written them.

The whole command and its surroundings are in tests/runtime/finalize/test_finalize.py; nothing is built here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dexport.errors import Failure
from dexport.runtime.builders.builder import profiles_of, profiles_to_json
from dexport.runtime.builders.tensorrt import layers_from_json, trtexec_flags, trtexec_version
from dexport.runtime.manifest import Variant
from dexport.targets.catalogue import find

ORIN = find("jetson-orin-nano-8gb@jetpack-6.2")
PROFILES = [{"latent": ((1, 4), (1, 4), (1, 4))}, {"latent": ((2, 4), (2, 4), (8, 4))}]


def test_flags_of_a_model_with_two_profiles() -> None:
    assert trtexec_flags(PROFILES, ORIN) == (
        "--stronglyTyped",
        "--skipInference",
        "--profilingVerbosity=detailed",
        "--memPoolSize=workspace:1433M",
        "--profile=0",
        "--minShapes=latent:1x4",
        "--optShapes=latent:1x4",
        "--maxShapes=latent:1x4",
        "--profile=1",
        "--minShapes=latent:2x4",
        "--optShapes=latent:2x4",
        "--maxShapes=latent:8x4",
    )


def test_flags_of_a_model_with_fixed_sizes_name_no_shapes() -> None:
    assert not [flag for flag in trtexec_flags([], ORIN) if "Shapes" in flag or "profile=" in flag]


def test_profiles_survive_the_manifest() -> None:
    variant = Variant(size=None, artifact="a", format="tensorrt-kit", files=("a",), profiles=profiles_to_json(PROFILES))
    assert profiles_of(variant) == PROFILES
    assert profiles_to_json([]) is None and profiles_of(Variant(size=None, artifact="a", format="openvino", files=("a",))) == []


@pytest.mark.parametrize(
    ("prints", "version"),
    [
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --help", "10.3.0"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v101602] [b10] # trtexec", "10.16.2"),
        ("something else", ""),
    ],
)
def test_version_of_trtexec(tmp_path: Path, prints: str, version: str) -> None:
    program = tmp_path / "trtexec"
    program.write_text(f"#!/bin/sh\necho '{prints}'\nexit 1\n")
    program.chmod(0o755)
    assert trtexec_version(str(program)) == version
    assert trtexec_version(str(tmp_path / "none")) == ""


def _layer(**entry: Any) -> Any:
    (layer,) = layers_from_json(json.dumps({"Layers": [{"Name": "n", **entry}], "Bindings": []}).encode(), "loop")
    return layer


@pytest.mark.parametrize(
    ("datatype", "precision"),
    [
        ("Half", "fp16"),
        ("Float", "fp32"),
        ("Int8", "int8"),
        ("BF16", "bf16"),
        ("BFloat16", "bf16"),
        ("FP8", "fp8"),
        ("Row major linear FP16 format", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Channel major FP16 format where channel % 4 == 0", "fp16"),
        ("Row major linear FP32", "fp32"),
        ("FP4", "nvfp4"),
    ],
)
def test_spellings_of_a_number_format(datatype: str, precision: str) -> None:
    layer = _layer(LayerType="CaskConvolution", Inputs=[{"Name": "x", "Format/Datatype": datatype}])
    assert layer.precisions == {precision} and layer.multiplies


def test_a_fused_layer_names_its_nodes() -> None:
    layer = _layer(LayerType="gemm", Metadata="[ONNX Layer: node_MatMul_3]\x1f[ONNX Layer: node_linear]\x1e[ONNX Layer: q]", Inputs=[])
    assert layer.nodes == {"node_MatMul_3", "node_linear", "q"}


def test_a_kernel_that_quantizes_its_own_input_is_known_by_its_name() -> None:
    tactic = "sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize128x128x64"
    layer = _layer(LayerType="fusion", TacticName=tactic, Inputs=[{"Name": "x", "Format/Datatype": "Half"}])
    assert layer.precisions == {"fp16", "int8"} and layer.multiplies
    assert not _layer(LayerType="kgen", TacticName="__myl_AddRelu", Inputs=[{"Name": "x", "Format/Datatype": "Int64"}]).precisions


@pytest.mark.parametrize("content", ["", "[]", '{"Layers": 1}', '{"Layers": ["names only"]}'])
def test_another_file_is_a_failure(content: str) -> None:
    with pytest.raises(Failure, match="loop: layers: expected what --exportLayerInfo writes, got"):
        layers_from_json(content.encode(), "loop")
