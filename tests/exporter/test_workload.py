"""Bytes and loads of planned layers, against the graphs that quantization makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dexport.exporter.effective_recipe import effective_recipe
from dexport.exporter.options import BuildOptions
from dexport.exporter.quantization import quantized_split
from dexport.exporter.torch_pipeline import TorchPipeline
from dexport.exporter.workload import Workload, planned_treatments, weight_bytes
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.statistics import Statistics
from dexport.targets.catalogue import find


@pytest.mark.parametrize("recipe", ["vidit-q-w8a8", "int4-weight-only"])
def test_planned_bits_are_those_of_the_layers(opened: TorchPipeline, calibrated: Statistics, recipe: str, tmp_path: object) -> None:
    options = BuildOptions(model="m", target="rtx-5090", recipe=recipe)
    effective = effective_recipe(options, find("rtx-5090"))
    assert effective is not None
    treatments = planned_treatments(opened.split, effective, options)
    quantized = quantized_split(opened.split, effective.recipe, calibrated, Scratch(tmp_path))  # type: ignore[arg-type]
    name = opened.split.denoiser.loop.name
    found = weight_bytes(opened.split.denoiser.loop, treatments[name])
    treated = [layer for layer in quantized.layers if layer.component == name and layer.bits < 16]
    expected = sum(layer.bits * layer.parameters / 8 for layer in treated)
    (format,) = set(found) - {"fp32"}
    assert treated and found[format] == pytest.approx(expected, rel=0.1)


def test_planned_work_is_that_of_the_quantized_graph(opened: TorchPipeline, calibrated: Statistics, tmp_path: object) -> None:
    options = BuildOptions(model="m", target="rtx-5090", recipe="vidit-q-w8a8")
    effective = effective_recipe(options, find("rtx-5090"))
    assert effective is not None
    quantized = quantized_split(opened.split, effective.recipe, calibrated, Scratch(tmp_path))  # type: ignore[arg-type]
    before = Workload(opened.split, planned_treatments(opened.split, effective, options)).loads(opened.program, 1)
    after = Workload(quantized.split).loads(opened.program, 1)
    for planned, built in zip(before, after, strict=True):
        products = [sorted((w.format, w.operations, n) for n, w in one.work if w.kind == "product") for one in (planned, built)]
        assert products[0] == products[1]
    assert planned.component == built.component


def test_narrow_storage_of_wide_weights(opened: TorchPipeline) -> None:
    import torch

    loop = opened.split.denoiser.loop
    wide, narrow = weight_bytes(loop, {}), weight_bytes(loop, {}, torch.float16)
    assert set(wide) == {"fp32"} and set(narrow) == {"fp16"}
    assert 2 * narrow["fp16"] == wide["fp32"]


def test_mixed_precision_counts_the_choice_above_its_budget(opened: TorchPipeline) -> None:
    loop = opened.split.denoiser.loop
    sizes = []
    for bits in (4.0, 6.0, 12.0):
        options = BuildOptions(model="m", target="rtx-5090", recipe="vidit-q-mp", average_bits=bits, allow_degrade=True)
        treatments = planned_treatments(opened.split, effective_recipe(options, find("rtx-5090")), options)
        sizes.append(sum(weight_bytes(loop, treatments[loop.name]).values()))
    assert sizes == sorted(sizes) and sizes[-1] < sum(weight_bytes(loop, {}).values())


def test_equal_calls_are_found_once(opened: TorchPipeline) -> None:
    workload = Workload(opened.split)
    loads = list(workload.loads(opened.program, 1))
    assert [one.component for one in loads] == [graph.name for graph in opened.split.graphs()]
    assert list(workload.loads(replace(opened.program), 1)) == loads
    assert all(one is again for one, again in zip(workload.loads(opened.program, 1), loads))
