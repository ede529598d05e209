"""What a build takes, and what it is told where that is too much, on the tiny pipeline and devices made small for it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from dexport.errors import UserError
from dexport.exporter.effective_recipe import effective_recipe
from dexport.exporter.estimate import Outline, Prepared, nearest, outlined, require_memory
from dexport.exporter.latency import step_latency
from dexport.exporter.operations import Operations
from dexport.exporter.options import BuildOptions
from dexport.exporter.plan import Plan
from dexport.exporter.split import split_pipeline
from dexport.exporter.torch_pipeline import TorchPipeline
from dexport.passes.graph import BATCH
from dexport.targets.catalogue import find
from dexport.targets.latency import total

DEVICE = find("rtx-5090")
GIB = 2**30


def planned(opened: TorchPipeline, available_bytes: float | None = None, **options: object) -> Plan:
    """The plan on a GPU, which has so much memory for it."""
    target = DEVICE if available_bytes is None else replace(DEVICE, memory_gib=1 + available_bytes / GIB, memory_reserve_gib=1.0)
    asked = BuildOptions(model=opened.plan.options.model, target="rtx-5090", **options)  # type: ignore[arg-type]
    return replace(opened.plan, options=asked, target=target, recipe=effective_recipe(asked, target))


def outline(opened: TorchPipeline, plan: Plan) -> Outline:
    return outlined(plan, opened.split, opened.solver)


def prepared(opened: TorchPipeline, plan: Plan) -> Prepared:
    return Prepared(plan, {(opened.split.size, opened.plan.steps[0]): opened.solver}, (opened.split,))


def test_a_run_is_every_call_of_the_program(opened: TorchPipeline) -> None:
    """Four steps with guidance call the loop with two rows; encoder and decoder run once."""
    plan = planned(opened)
    found = outline(opened, plan).estimate(plan)
    parts = {part.name: part for part in found.parts}
    assert set(parts) == {graph.name for graph in opened.split.graphs()}
    loop = opened.split.denoiser.loop
    step = step_latency(loop, plan).others([])
    assert found.step_milliseconds == pytest.approx(step)
    assert (parts["denoiser"].calls, parts["denoiser"].milliseconds) == (4, pytest.approx(4 * step))
    (decoder,) = opened.split.decoders
    assert parts[decoder.name].milliseconds == pytest.approx(total(Operations(decoder, {BATCH: 1}).all(), DEVICE))
    assert found.milliseconds == pytest.approx(sum(part.milliseconds or 0 for part in found.parts))
    assert {name: part.weight_bytes for name, part in parts.items()} == {
        graph.name: sum(weight.nbytes for weight in graph.used_weights().values()) for graph in opened.split.graphs()
    }
    assert found.in_turn_bytes < found.together_bytes
    assert found.together_bytes >= sum(part.weight_bytes for part in found.parts) + max(part.arena_bytes for part in found.parts)


def test_more_pictures_take_more(opened: TorchPipeline) -> None:
    one, two = (outline(opened, plan).estimate(plan) for plan in (planned(opened), planned(opened, batch=2)))
    assert one.milliseconds is not None and two.milliseconds is not None
    assert one.milliseconds < two.milliseconds <= 2 * one.milliseconds
    assert one.parts[0].arena_bytes < two.parts[0].arena_bytes
    assert one.buffer_bytes < two.buffer_bytes


def test_a_recipe_makes_weights_smaller_and_steps_quicker(opened: TorchPipeline) -> None:
    plain, recipe = planned(opened), planned(opened, recipe="vidit-q-w8a8")
    before, after = (outline(opened, plan).estimate(plan) for plan in (plain, recipe))
    denoisers = [next(p for p in found.parts if p.name == "denoiser") for found in (before, after)]
    assert set(denoisers[0].weights) == {"fp32"} and set(denoisers[1].weights) == {"fp32", "int8"}
    assert denoisers[1].weight_bytes < denoisers[0].weight_bytes
    assert after.step_milliseconds is not None and before.step_milliseconds is not None
    assert after.step_milliseconds < before.step_milliseconds


def test_what_fits_is_built(opened: TorchPipeline) -> None:
    plan = planned(opened)
    in_turn = outline(opened, plan).estimate(plan).in_turn_bytes
    require_memory(prepared(opened, planned(opened, in_turn + 2)))
    with pytest.raises(UserError, match=r"^memory of rtx-5090: expected at most .* GiB less 1 for the system\), got .* text_encoder"):
        require_memory(prepared(opened, planned(opened, in_turn - 2)))


def test_the_nearest_plan_is_the_recipe_that_keeps_most(opened: TorchPipeline) -> None:
    """The tiny text encoder decides; on so small a device every recipe treats it."""
    made = outline(opened, planned(opened))
    full = made.estimate(planned(opened)).in_turn_bytes
    advice = nearest(planned(opened, full - 2), made)
    assert advice.startswith("add --recipe ")
    flags = dict(pair.split() for pair in advice.removeprefix("add ").partition(":")[0].replace(" --", "|--").split("|"))
    parts = dict([flags["--component"].split("=")]) if "--component" in flags else {}
    assert made.estimate(planned(opened, full - 2, recipe=flags["--recipe"], parts=parts)).in_turn_bytes <= full - 2


def test_a_smaller_size_where_no_recipe_is_enough(opened: TorchPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pictures so large that their pixels decide rather than the text encoder."""
    monkeypatch.setattr("dexport.exporter.estimate._recipes", lambda decided: iter(()))

    def taken(height: int, width: int) -> tuple[Outline, int]:
        made = outlined(planned(opened), split_pipeline(planned(opened), (height, width), [opened.solver]), opened.solver)
        return made, made.estimate(planned(opened)).in_turn_bytes

    made, full = taken(128, 128)
    advice = nearest(planned(opened, full - 2), made)
    found = re.fullmatch(r"use --size (\d+)x(\d+): .* GiB.*", advice)
    assert found, advice
    assert (int(found[1]), int(found[2])) == (96, 96)
    assert taken(96, 96)[1] <= full - 2


def test_a_device_with_more_memory_where_no_size_is_small_enough(opened: TorchPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dexport.exporter.estimate._recipes", lambda decided: iter(()))
    made = outline(opened, planned(opened))
    full = made.estimate(planned(opened)).in_turn_bytes
    assert nearest(planned(opened, full / 100), made) == "choose a device with more memory: no recipe or size that dexport knows fits"
