"""What TensorRT-RTX makes of a whole denoising loop, for three GPU generations, without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dexport.exporter.components import load_component
from dexport.exporter.emit import Ranges
from dexport.exporter.engines.tensorrt_rtx import build_engine
from dexport.exporter.external_data import WeightFile
from dexport.exporter.onnx import onnx_from_graph
from dexport.exporter.pipelines import open_directory
from dexport.passes.graph import Graph
from dexport.passes.hoist import hoist
from dexport.passes.ports import widen_ports
from tests.pipelines_pixart import tiny_pixart

BLOCKS = 2
pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx")


@pytest.fixture(scope="module")
def loop_onnx(tmp_path_factory: pytest.TempPathFactory) -> tuple[Graph, Path]:
    """The fp16 loop of a PixArt denoiser with heads of 64, as ONNX."""
    folder = tmp_path_factory.mktemp("loop")
    directory = tiny_pixart(folder / "model", size=16, attention_head_dim=64, cross_attention_dim=128, num_layers=BLOCKS)
    pipeline = open_directory(directory)
    component = next(c for c in pipeline.components((32, 32), torch.float16) if c.name == "denoiser")
    loop = widen_ports(hoist(load_component(directory, component, torch.float16)).loop)
    with WeightFile(folder / "loop.data") as weights:
        return loop, onnx_from_graph(loop, folder / "loop.onnx", opset=20, weights=weights).path


@pytest.mark.parametrize("sm", [86, 89, 120])
def test_loop_has_fused_attentions_and_half_precision_gemms_only(sm: int, loop_onnx: tuple[Graph, Path], tmp_path: Path) -> None:
    graph, onnx = loop_onnx
    ranges = Ranges(rows=((2, 2, 2), (1, 1, 1)), steps=(1, 1, 1))
    symbolic = [p for p in graph.inputs if "batch" in p.shape]
    profiles = [{p.name: ranges.shapes(p.shape, i) for p in symbolic} for i in (0, 1)]
    report = build_engine(onnx, tmp_path / "loop.plan", sm=(sm,), profiles=profiles)
    assert report.kernels.readable, report.kernels.reason
    assert report.kernels.accelerators == (f"sm{sm}",)
    for program in report.kernels.programs:  # one per profile: with guidance and without
        assert program.attentions == {"fp16": 2 * BLOCKS}  # self and cross attention of every block, each one kernel
        # q, k, v of self attention are one GEMM; then out, cross q, cross out and two of the feed-forward; and the last projection
        assert program.gemms == {"fp16": 6 * BLOCKS + 1}
        assert program.unfused_attention == ()
