"""ModelOpt's values in our graphs: they compute what the fake-quantized module computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from dexport.errors import UserError
from dexport.exporter.capture import Input
from dexport.exporter.modelopt_bridge import Quantizer, SiteValues
from dexport.exporter.modelopt_checkpoint import Layer, ModeloptCheckpoint, open_modelopt
from dexport.exporter.modelopt_values import treatment_of
from dexport.exporter.quantization import layer_report
from dexport.passes.graph import BATCH, Graph, Kind, run
from dexport.passes.quantization.quantize import quantize
from dexport.passes.quantization.recipe import ActivationSpec, Treatment, WeightSpec
from dexport.passes.quantization.scratch import Scratch
from dexport.targets.formats import Backend
from tests.exporter import modelopt_files as files
from tests.exporter.spellings.backends import result
from tests.exporter.spellings.backends import written as onnx_file
from tests.passes.graphs import graph_of, operations

INPUTS = (Input("latent", (BATCH, 5, 24), torch.float32, Kind.LATENT),)
EXACT = 1e-5


class Three(nn.Module):
    """Two linears that read one value, then a third."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(24, 32), nn.Linear(24, 32, bias=False), nn.Linear(32, 8)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.third(functional.gelu(self.first(latent)) * self.second(latent))  # type: ignore[no-any-return]


def latents(seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 5, 24, generator=generator) * (1 + torch.arange(24) / 4)


def layers(configuration: files.Configuration) -> dict[str, files.Quantized]:
    """Every linear quantized on the ranges of some latents."""
    model, x = Three(), latents(1)
    with torch.no_grad():
        inputs = {"first": x, "second": x, "third": functional.gelu(model.first(x)) * model.second(x)}
        spans = {name: value.abs().flatten(0, -2).amax(0) for name, value in inputs.items()}
        return {name: files.quantized(model.get_submodule(name).weight, span, configuration) for name, span in spans.items()}


def fake(found: Mapping[str, files.Quantized], x: torch.Tensor) -> torch.Tensor:
    """What ModelOpt's module computes."""
    model = Three()
    first, second = found["first"].forward(x, model.first.bias), found["second"].forward(x, None)
    return found["third"].forward(functional.gelu(first) * second, model.third.bias)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return graph_of(Three(), INPUTS)


def written(graph: Graph, checkpoint: ModeloptCheckpoint, folder: Path) -> Graph:
    return quantize(graph, checkpoint.decide(graph, checkpoint.treatments(graph), Scratch(folder)).values).graph


@pytest.mark.parametrize("name", ["INT8", "INT8_TENSOR", "SMOOTHQUANT", "FP8", "AWQ", "W4A8", "SVDQUANT"])
def test_the_graph_computes_what_the_fake_quantized_module_computes(name: str, graph: Graph, tmp_path: Path) -> None:
    found = layers(getattr(files, name))
    quantized = written(graph, open_modelopt(str(files.save(tmp_path / "m.pth", found))), tmp_path)
    assert operations(quantized).count("dexport.quantized_linear.default") == 3
    with torch.no_grad():
        for seed in (3, 4):
            x = latents(seed)
            expected, y, plain = fake(found, x), run(quantized, {"latent": x})["out"], run(graph, {"latent": x})["out"]
            assert (y - expected).norm() < EXACT * expected.norm()
            assert (plain - expected).norm() > 100 * EXACT * expected.norm(), "quantization must show, or the line above proves nothing"


def test_layers_that_read_one_value_share_what_is_done_to_it(graph: Graph, tmp_path: Path) -> None:
    quantized = written(graph, open_modelopt(str(files.save(tmp_path / "m.pth", layers(files.SMOOTHQUANT)))), tmp_path)
    products = operations(quantized).count("mul.Tensor") - operations(graph).count("mul.Tensor")
    assert products == 2  # at alpha 1 the scale depends on the input alone: one for `first` and `second`, one for `third`
    scales = {node.args[5] for node in quantized.module.graph.nodes if "quantized_linear" in str(node.target)}
    assert len(scales) == 2


@pytest.mark.parametrize(
    ("name", "label", "bits"),
    [
        ("INT8", "int8", 8 + 32 / 24),
        ("INT8_TENSOR", "int8 tensor", 8 + 32 / 768),
        ("AWQ", "int4 block-8", 4 + 32 / 8),
        ("W4A8", "e4m3 tensor", 8 + 32 / 768),
        ("SVDQUANT", "int8", 8 + 32 / 24 + 16 * 3 * (24 + 32) / 768),
    ],
)
def test_bits_count_scales_and_branch(name: str, label: str, bits: float, graph: Graph, tmp_path: Path) -> None:
    checkpoint = open_modelopt(str(files.save(tmp_path / "m.pth", layers(getattr(files, name)))))
    treatments = checkpoint.treatments(graph)
    first = layer_report(graph, treatments, checkpoint.decide(graph, treatments, Scratch(tmp_path)))[0]
    assert (first.site, first.weights) == ("first", label) and first.bits == pytest.approx(bits)
    assert first.note == ("rounded to int4 block-8 before" if name == "W4A8" else "")


def test_another_format_takes_the_magnitudes(graph: Graph, tmp_path: Path) -> None:
    """FP8 that becomes INT8: the input keeps its amax, the weight gets a scale per channel."""
    found = layers(files.FP8)
    int8 = Treatment(weights=WeightSpec(format="int8"), activations=ActivationSpec(format="int8"))
    checkpoint = open_modelopt(str(files.save(tmp_path / "m.pth", found))).treated(lambda layer: int8)
    y = run(written(graph, checkpoint, tmp_path), {"latent": latents()})["out"]
    same = {name: files.quantized(layer.weight, layer.input_amax[None], files.INT8) for name, layer in found.items()}
    with torch.no_grad():
        assert (y - fake(same, latents())).norm() < EXACT * y.norm()


def test_half_precision_graphs_hold_scales_in_their_own_dtype(tmp_path: Path) -> None:
    graph = graph_of(Three().half(), (Input("latent", (BATCH, 5, 24), torch.float16, Kind.LATENT),))
    found = layers(files.SVDQUANT)
    quantized = written(graph, open_modelopt(str(files.save(tmp_path / "m.pth", found))), tmp_path)
    expected = fake(found, latents())
    with torch.no_grad():
        y = run(quantized, {"latent": latents().half()})["out"]
    assert y.dtype is torch.float16 and (y.float() - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime-cpu"])
def test_backends_take_scales_of_blocks_in_single_precision(backend: Backend, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = graph_of(nn.Sequential(nn.Linear(64, 32)), (Input("latent", (BATCH, 5, 64), torch.float32, Kind.LATENT),))
    layer = files.quantized(graph.weights["0.weight"].load(), torch.ones(64), replace(files.AWQ, stages=((4, None, 32),)))
    quantized = written(graph, open_modelopt(str(files.save(tmp_path / "m.pth", {"0": layer}))), tmp_path)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    y = result(onnx_file(quantized, tmp_path, backend), backend, {"latent": x})
    expected = layer.forward(x, graph.weights["0.bias"].load())
    assert (y - expected).norm() < EXACT * expected.norm()


def site(**changes: Any) -> SiteValues:
    given: dict[str, Any] = {"weight": torch.ones(4, 32), "weights": (Quantizer("int8", torch.tensor(1.0)),), "inputs": None}
    return SiteValues(**(given | {"pre_quant_scale": None, "low_rank": None} | changes))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (site(weight=torch.ones(4, 2, 3, 3), pre_quant_scale=torch.ones(2)), "of a convolution"),
        (site(weights=(Quantizer("e2m1", torch.tensor(3.0), 16, "nvfp4"),)), "a global scale of NVFP4"),
        (site(inputs=Quantizer("e2m1", None, 16, "nvfp4")), "expected an amax of its input, got none"),
    ],
)
def test_what_our_operations_cannot_say_is_refused(values: SiteValues, message: str) -> None:
    with pytest.raises(UserError, match=f"file: layer: .*{message}"):
        treatment_of("file: layer", values)


def test_nvfp4_keeps_its_global_scales(tmp_path: Path) -> None:
    graph = graph_of(nn.Sequential(nn.Linear(16, 8)), (Input("latent", (BATCH, 5, 16), torch.float32, Kind.LATENT),))
    weight = graph.weights["0.weight"].load()
    values = site(
        weight=weight,
        weights=(Quantizer("e2m1", weight.abs().amax(), 16, "nvfp4"),),
        inputs=Quantizer("e2m1", torch.tensor(2.0), 16, "nvfp4"),
    )
    treatment = treatment_of("x", values)
    assert treatment.weights == WeightSpec(format="nvfp4") and treatment.activations == ActivationSpec(format="nvfp4", mode="dynamic")
    checkpoint = ModeloptCheckpoint("m", {"0": Layer(values, treatment, treatment)})
    (part,) = checkpoint.decide(graph, checkpoint.treatments(graph), Scratch(tmp_path)).values["0"].parts
    assert part.coarse is not None and float(part.coarse.load()) == pytest.approx(float(weight.abs().amax()) / (6 * 448))
    assert part.activations is not None and part.activations.scale is not None
    assert float(part.activations.scale) == pytest.approx(2.0 / (6 * 448))


@pytest.mark.parametrize("name", ["INT8_SMOOTHQUANT_CFG", "INT4_AWQ_CFG", "svdquant"])
def test_the_graph_computes_what_modelopt_computes(name: str, graph: Graph, tmp_path: Path) -> None:
    mtq = pytest.importorskip("modelopt.torch.quantization", reason="nvidia-modelopt is not installed")
    import modelopt.torch.opt as mto

    configuration = copy.deepcopy(getattr(mtq, "INT8_DEFAULT_CFG" if name == "svdquant" else name))
    if name == "svdquant":
        configuration |= {"algorithm": {"method": "svdquant", "lowrank": 4}}
    if name == "INT4_AWQ_CFG":
        rules = [{"quantizer_name": "*", "enable": False}]
        configuration["quant_cfg"] = [
            *rules,
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 4, "block_sizes": {-1: 16, "type": "static"}}},
        ]
    model = Three()
    with torch.no_grad():
        mtq.quantize(model, configuration, lambda m: [m(latents(seed)) for seed in (1, 2)])
        mto.save(model, tmp_path / "m.pth")
        expected = model(latents())
        quantized = written(graph, open_modelopt(str(tmp_path / "m.pth")), tmp_path)
        y = run(quantized, {"latent": latents()})["out"]
    assert (y - expected).norm() < 2e-3 * expected.norm(), "a code may flip by rounding, no more"
