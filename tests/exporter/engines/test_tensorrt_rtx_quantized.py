"""Quantized denoising loops in TensorRT-RTX: every linear is a low-bit GEMM, attention stays fused, tables cost no kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dexport.exporter.components import load_component
from dexport.exporter.emit import Ranges
from dexport.exporter.engines.kernels import KernelCounts
from dexport.exporter.engines.tensorrt_rtx import build_engine
from dexport.exporter.legality import check_onnx_for_tensorrt
from dexport.exporter.pipelines import open_directory
from dexport.passes.graph import Graph
from dexport.passes.hoist import hoist
from dexport.passes.ports import widen_ports
from tests.exporter.spellings.backends import written
from tests.exporter.spellings.quantized_graphs import Form, quantized, table_of_scales
from tests.pipelines_pixart import tiny_pixart

BLOCKS = 2
LINEARS = 8 * BLOCKS + 1  # q, k, v, out of self attention, q and out of cross attention, two of the feed-forward; the last projection
GEMMS = LINEARS - 2 * BLOCKS  # q, k and v of self attention become one
INT8_GPUS = (86, 89, 120)
FP8 = Form(weight="e4m3", activation="e4m3")
NVFP4 = Form(weight="e2m1", group=16, activation="e2m1", mode="dynamic", block=16, micro="nvfp4", scale=0.002)
pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx")


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The fp16 loop of a PixArt denoiser with heads of 64."""
    folder = tmp_path_factory.mktemp("loop")
    directory = tiny_pixart(folder / "model", size=16, attention_head_dim=64, cross_attention_dim=128, num_layers=BLOCKS)
    component = next(c for c in open_directory(directory).components((32, 32), torch.float16) if c.name == "denoiser")
    return widen_ports(hoist(load_component(directory, component, torch.float16)).loop)


def _counts(loop: Graph, form: Form, sm: tuple[int, ...], folder: Path, opset: int = 20) -> KernelCounts:
    graph = quantized(loop, form, table_of_scales("step_values_float16"))
    onnx = written(graph, folder, "tensorrt-rtx", opset)
    ranges = Ranges(rows=((2, 2, 2),), steps=(1, 1, 1))
    profile = {p.name: ranges.shapes(p.shape, 0) for p in graph.inputs if "batch" in p.shape}
    report = build_engine(onnx, folder / "loop.plan", sm=sm, profiles=[profile])
    assert report.kernels.readable, report.kernels.reason
    (program,) = report.kernels.programs
    assert program.attentions == {"fp16": 2 * BLOCKS} and program.unfused_attention == ()
    return program


def test_static_and_table_scales_are_int8_gemms_with_as_many_kernels(loop: Graph, tmp_path: Path) -> None:
    static = _counts(loop, Form(), INT8_GPUS, tmp_path)
    assert static.gemms == {"int8": GEMMS}
    table = _counts(loop, Form(mode="table"), INT8_GPUS, tmp_path)
    # Sites take two scales in turn here, so that of q, k and v only two share theirs.
    assert table.gemms == {"int8": GEMMS + BLOCKS}
    assert table.conversions + table.others <= static.conversions + static.others


def test_scales_per_token_are_int8_gemms(loop: Graph, tmp_path: Path) -> None:
    assert _counts(loop, Form(mode="dynamic"), INT8_GPUS, tmp_path).gemms == {"int8": GEMMS}


def test_four_bit_weights_with_eight_bit_activations_are_int8_gemms(loop: Graph, tmp_path: Path) -> None:
    assert _counts(loop, Form(weight="int4", activation="int6"), (86,), tmp_path).gemms == {"int8": GEMMS}


def test_float8(loop: Graph, tmp_path: Path) -> None:
    assert set(_counts(loop, FP8, (89, 120), tmp_path).gemms) == {"fp8"}


def test_nvfp4(loop: Graph, tmp_path: Path) -> None:
    assert _counts(loop, NVFP4, (120,), tmp_path, opset=23).gemms == {"fp4": LINEARS}


def test_a_jetson_kit_takes_the_same_forms(loop: Graph, tmp_path: Path) -> None:
    forms = [Form(), Form(mode="table"), Form(mode="dynamic"), Form(mode="dynamic-centred"), Form(weight="int4", activation="int6")]
    linears = [name for name, weight in loop.weights.items() if len(weight.shape) == 2]
    graph = quantized(loop, {name: forms[i % len(forms)] for i, name in enumerate(linears)}, table_of_scales("step_values_float16"))
    path = written(graph, tmp_path, "tensorrt-kit", 20)
    assert check_onnx_for_tensorrt(path, tensorrt=(10, 3), opset_max=20) == []
