"""Linears of 4 bits in groups become one node of the plugin on a Jetson, branch and bias in it, and the node means what the graph means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from dexport.errors import Failure
from dexport.exporter.legality import check_onnx_for_tensorrt
from dexport.exporter.spellings import lowrank
from dexport.passes.graph import run
from dexport.plugins.lowrank_linear.reference import lowrank_linear_reference
from dexport.plugins.lowrank_linear.shapes import GROUP
from dexport.runtime.builders.plugins import plugin_folder, plugin_manifest
from tests.exporter.spellings.backends import written
from tests.exporter.spellings.quantized_graphs import BRANCHED_OUTPUTS, INPUTS, Form, branched_graph

OPSET = 20
W4A4 = Form(weight="int4", group=64, activation="int4", mode="dynamic", block=64)
FORMS = {
    "w4a4": W4A4,
    "w4a8 per token": Form(weight="int4", group=64, activation="int8", mode="dynamic"),
    "w4 per channel, a4 in groups": Form(weight="int4", activation="int4", mode="dynamic", block=64),
    "half steps": Form(weight="e1m2", group=64, activation="int8", mode="dynamic"),
    "static": Form(weight="int4", group=64, activation="int8"),
    "a row of a table": Form(weight="int4", group=64, activation="int8", mode="table"),
}


class LowrankLinear(OpRun):  # type: ignore[misc]
    """The plugin as the reference evaluator of ONNX calls it, from the inputs and attributes of a node alone."""

    op_domain = "dexport"

    def _run(self, *inputs: np.ndarray[Any, Any], **attributes: Any) -> tuple[np.ndarray[Any, Any]]:
        assert (attributes["plugin_version"], attributes["plugin_namespace"]) == ("1", "dexport")
        x, weight, scale, *rest = (torch.from_numpy(array.copy()) for array in inputs)
        down, up = (rest.pop(0), rest.pop(0)) if attributes["branch"] else (x.new_zeros(0, x.shape[-1]), x.new_zeros(weight.shape[0], 0))
        bias = rest.pop(0) if attributes["bias"] else None
        constant = rest.pop(0) if attributes["scale"] else None
        assert not rest and weight.dtype is torch.int32 and down.shape[0] % 16 == 0
        number = {4: "int4", 8: "int8"}[attributes["activation_bits"]]
        tail = (bias, None, None, constant, number, attributes["activation_block"], bool(attributes["gelu"]))
        return (lowrank_linear_reference(x, weight.view(torch.uint8), scale, down, up, *tail).numpy(),)


def _inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    latent = torch.randn(2, 6, INPUTS)
    latent[0, 0] = 0  # a row without any range
    return {"latent": latent.half(), "scales": torch.tensor([[0.03, 0.011]]).half()}


def _computed(path: Path) -> torch.Tensor:
    evaluator = ReferenceEvaluator(str(path), new_ops=[LowrankLinear])
    return torch.from_numpy(evaluator.run(None, {name: tensor.numpy() for name, tensor in _inputs().items()})[0])


def _nodes(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


@pytest.mark.parametrize("rank", [0, 20])
@pytest.mark.parametrize("name", FORMS)
def test_the_node_means_what_the_graph_means(name: str, rank: int, tmp_path: Path) -> None:
    """Differences are those of rounding to fp16 once and not several times; the codes of the weights are the same."""
    graph = branched_graph(FORMS[name], rank)
    path = written(graph, tmp_path, "tensorrt-kit", OPSET)
    torch.testing.assert_close(_computed(path), run(graph, _inputs())["out"], rtol=4e-3, atol=4e-3)
    assert _nodes(path).count("LowrankLinear") == 1 and "MatMul" not in _nodes(path)
    onnx.checker.check_model(str(path))
    for tensorrt in ((10, 3), (10, 16)):
        assert not check_onnx_for_tensorrt(path, tensorrt=tensorrt, opset_max=OPSET, plugins=("lowrank_linear",))


@pytest.mark.parametrize(("rank", "twice", "kept"), [(129, False, False), (16, True, False), (16, False, True)])
def test_a_branch_that_the_node_cannot_have_stays_beside_it(rank: int, twice: bool, kept: bool, tmp_path: Path) -> None:
    graph = branched_graph(W4A4, rank, twice=twice, kept=kept)
    path = written(graph, tmp_path, "tensorrt-kit", OPSET)
    assert _nodes(path).count("LowrankLinear") == 1 and _nodes(path).count("MatMul") == 2
    torch.testing.assert_close(_computed(path), run(graph, _inputs())["out"], rtol=4e-3, atol=8e-3)


def test_zeros_fill_the_rank_up(tmp_path: Path) -> None:
    model = onnx.load(written(branched_graph(W4A4, 20), tmp_path, "tensorrt-kit", OPSET))
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    node = next(node for node in model.graph.node if node.op_type == "LowrankLinear")
    down, up = (held[name] for name in node.input[3:5])
    assert down.shape == (32, INPUTS) and up.shape == (BRANCHED_OUTPUTS, 32)
    assert not down[20:].any() and not up[:, 20:].any() and down[:20].any() and up[:, :20].any()


@pytest.mark.parametrize(
    "form",
    [
        Form(weight="int4", group=32, activation="int4", mode="dynamic", block=32),
        Form(weight="int4", group=64, activation="int6", mode="dynamic"),
        Form(weight="int8", group=64, activation="int8", mode="dynamic"),
        Form(weight="int4", group=64, activation="int8", centre=True),
    ],
)
def test_other_forms_stay_refused(form: Form, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="expected a form that tensorrt-kit computes exactly"):
        written(branched_graph(form, 0), tmp_path, "tensorrt-kit", OPSET)


def test_wide_numbers_and_other_backends_stay_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="expected a form that tensorrt-kit computes exactly"):
        written(branched_graph(W4A4, 0, torch.float32), tmp_path, "tensorrt-kit", OPSET)
    with pytest.raises(Failure, match="expected a form that tensorrt-rtx computes exactly"):
        written(branched_graph(W4A4, 0), tmp_path, "tensorrt-rtx")


def test_what_tensorrt_multiplies_itself_needs_no_plugin(tmp_path: Path) -> None:
    path = written(branched_graph(Form(weight="int4", activation="int4", mode="dynamic"), 0), tmp_path, "tensorrt-kit", OPSET)
    assert "LowrankLinear" not in _nodes(path) and {item.domain for item in onnx.load(path).opset_import} == {""}


def test_sizes_are_those_that_the_kernel_says_it_has() -> None:
    said = plugin_manifest(plugin_folder("lowrank_linear"))
    known = (GROUP, lowrank.OUTPUT_MULTIPLE, lowrank._RANK_MULTIPLE, lowrank._LARGEST_RANK)
    assert known == tuple(said[name] for name in ("input_multiple", "output_multiple", "rank_multiple", "largest_rank"))
