"""What TensorRT-RTX makes of a whole denoising loop, in 16 bits and quantized, for three GPU generations, without a GPU.

Every linear must be a GEMM of its format, attention must stay fused, and neither tables nor FP8 attention may cost a kernel.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.exporter.components import load_component
from dexport.exporter.emit import Ranges
from dexport.exporter.engines.kernels import KernelCounts
from dexport.exporter.engines.tensorrt_rtx import build_engine
from dexport.exporter.legality import check_onnx_for_tensorrt
from dexport.exporter.pipelines import open_directory
from dexport.passes.graph import Graph, Kind
from dexport.passes.hoist import hoist
from dexport.passes.ports import widen_ports
from dexport.passes.quantization.decide import decide
from dexport.passes.quantization.quantize import quantize
from dexport.passes.quantization.recipe import ActivationSpec, LowRankSpec, Treatment, WeightSpec
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.sites import sites
from tests.exporter.spellings.attention_graphs import with_quantized_attention
from tests.exporter.spellings.backends import written
from tests.exporter.spellings.quantized_graphs import Form, quantized, table_of_scales
from tests.passes.graphs import graph_of
from tests.pipelines_pixart import tiny_pixart

LINEARS = 9  # q, k, v, out of self attention, q and out of cross attention, two of the feed-forward; the last projection
GEMMS = LINEARS - 2  # q, k and v of self attention become one
GPUS = (86, 89, 120)
FP8_GPUS = (89, 120)
FP8 = Form(weight="e4m3", activation="e4m3")
NVFP4 = Form(weight="e2m1", group=16, activation="e2m1", mode="dynamic", block=16, micro="nvfp4", scale=0.002)
INT4 = Form(weight="int4", group=64, mode="none")
pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx")


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The fp16 loop of a PixArt denoiser of one block with heads of 64."""
    folder = tmp_path_factory.mktemp("loop")
    directory = tiny_pixart(folder / "model", size=16, attention_head_dim=64, cross_attention_dim=128, num_layers=1)
    component = next(c for c in open_directory(directory).components((32, 32), torch.float16) if c.name == "denoiser")
    return widen_ports(hoist(load_component(directory, component, torch.float16)).loop)


@pytest.fixture(scope="module")
def fp16_onnx(loop: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(loop, tmp_path_factory.mktemp("fp16"), "tensorrt-rtx", 20)


@pytest.fixture(scope="module")
def dynamic(loop: Graph, tmp_path_factory: pytest.TempPathFactory) -> KernelCounts:
    """Of int8 linears with a scale per token."""
    return _of_form(loop, Form(mode="dynamic"), GPUS, tmp_path_factory.mktemp("dynamic"))


def _of_form(loop: Graph, form: Form, sm: tuple[int, ...], folder: Path, opset: int = 20, attention: str = "fp16") -> KernelCounts:
    graph = quantized(loop, form, table_of_scales("step_values_float16"))
    return _counts(graph, written(graph, folder, "tensorrt-rtx", opset), sm, attention=attention)[0]


def _counts(
    graph: Graph, onnx: Path, sm: tuple[int, ...], rows: tuple[int, ...] = (2,), attention: str = "fp16"
) -> tuple[KernelCounts, ...]:
    """Kernels of each profile (one for each number of rows), all of which have their attentions fused."""
    ranges = Ranges(rows=tuple((n, n, n) for n in rows), steps=(1, 1, 1))
    symbolic = [p for p in graph.inputs if "batch" in p.shape]
    profiles = [{p.name: ranges.shapes(p.shape, i) for p in symbolic} for i in range(len(rows))]
    report = build_engine(onnx, onnx.with_suffix(".plan"), sm=sm, profiles=profiles)
    assert report.kernels.readable, report.kernels.reason
    assert report.kernels.accelerators == tuple(f"sm{one}" for one in sm)
    for program in report.kernels.programs:
        assert program.attentions == {attention: 2}  # self and cross attention, each one kernel
        assert program.unfused_attention == ()
    return report.kernels.programs


def _plain(program: KernelCounts) -> int:
    """Kernels that multiply no matrices."""
    return program.conversions + program.others


@pytest.mark.parametrize("sm", GPUS)
def test_half_precision_with_guidance_and_without(sm: int, loop: Graph, fp16_onnx: Path) -> None:
    for program in _counts(loop, fp16_onnx, (sm,), rows=(2, 1)):
        assert program.gemms == {"fp16": GEMMS}


def test_static_and_table_scales_are_int8_gemms_with_as_many_kernels(loop: Graph, tmp_path: Path) -> None:
    static = _of_form(loop, Form(), GPUS, tmp_path)
    assert static.gemms == {"int8": GEMMS}
    table = _of_form(loop, Form(mode="table"), GPUS, tmp_path)
    # Sites take two scales in turn here, so that of q, k and v only two share theirs.
    assert table.gemms == {"int8": GEMMS + 1}
    assert _plain(table) <= _plain(static)


def test_scales_per_token_are_int8_gemms(dynamic: KernelCounts) -> None:
    assert dynamic.gemms == {"int8": GEMMS}


def test_a_low_rank_branch_is_two_small_gemms_beside_an_int8_gemm(loop: Graph, dynamic: KernelCounts, tmp_path: Path) -> None:
    """4-bit weights and 6-bit activations, which are int8 GEMMs here. The sum is fused, into the up-projection (then the rescaling of the
    int8 result stands alone) or into the kernel that rescales it."""
    activations = ActivationSpec(format="int6", mode="dynamic", granularity="token")
    treatment = Treatment(weights=WeightSpec(format="int4"), activations=activations, low_rank=LowRankSpec(rank=16))
    linears = [site.name for site in sites(loop) if site.kind == "linear"]
    graph = quantize(loop, decide(loop, dict.fromkeys(linears, treatment), {}, Scratch(tmp_path)).values).graph
    (program,) = _counts(graph, written(graph, tmp_path, "tensorrt-rtx", 20), (86, 89))
    # The down-projections of q, k and v become one, the up-projections have nothing in common.
    assert program.gemms == {"int8": GEMMS, "fp16": GEMMS + LINEARS}
    assert _plain(program) <= _plain(dynamic) + LINEARS


def test_four_bit_weights_alone_are_widened_inside_the_gemm(loop: Graph, tmp_path: Path) -> None:
    """No kernel writes a widened weight to memory. The first inputs have two blocks of 64, the feed-forward eight."""
    assert _of_form(loop, INT4, GPUS, tmp_path, opset=23).gemms == {"int4-weights": LINEARS}


def test_four_bit_weights_take_four_bits_of_an_engine(tmp_path: Path) -> None:
    """Two engines of the same kernels differ by their weights, within 3 % of codes, scales and biases."""

    def size(width: int) -> int:
        ports = (Input("latent", (64, width), torch.float16, Kind.LATENT),)
        graph = quantized(graph_of(nn.Linear(width, width).half(), ports), INT4)
        return build_engine(written(graph, tmp_path, "tensorrt-rtx", 21), tmp_path / "m.plan", sm=(86,)).bytes

    def least(width: int) -> int:
        return width * width // 2 + 2 * width * width // INT4.group + 2 * width

    small, large = 256, 1024
    assert 0.97 <= (size(large) - size(small)) / (least(large) - least(small)) <= 1.03


def test_float8(loop: Graph, tmp_path: Path) -> None:
    plain = _of_form(loop, FP8, FP8_GPUS, tmp_path)
    assert set(plain.gemms) == {"fp8"}
    attention = _of_form(with_quantized_attention(loop), FP8, FP8_GPUS, tmp_path, attention="fp8")
    assert attention.gemms == plain.gemms and _plain(attention) <= _plain(plain)


def test_nvfp4(loop: Graph, tmp_path: Path) -> None:
    assert _of_form(loop, NVFP4, (120,), tmp_path, opset=23).gemms == {"fp4": LINEARS}


def test_a_jetson_kit_takes_the_same_forms(loop: Graph, tmp_path: Path) -> None:
    forms = [Form(), Form(mode="table"), Form(mode="dynamic"), Form(mode="dynamic-centred"), Form(weight="int4", activation="int6")]
    linears = [name for name, weight in loop.weights.items() if len(weight.shape) == 2]
    graph = quantized(loop, {name: forms[i % len(forms)] for i, name in enumerate(linears)}, table_of_scales("step_values_float16"))
    path = written(graph, tmp_path, "tensorrt-kit", 20)
    assert check_onnx_for_tensorrt(path, tensorrt=(10, 3), opset_max=20) == []
