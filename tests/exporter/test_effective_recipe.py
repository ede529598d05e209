"""The recipe of a build: parts exchanged, defaults for small devices, what a target cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dexport.errors import UserError
from dexport.exporter.effective_recipe import EffectiveRecipe, describe, effective_recipe
from dexport.exporter.options import BuildOptions
from dexport.targets.catalogue import find


def effective(target: str, **options: Any) -> EffectiveRecipe:
    found = effective_recipe(BuildOptions(model="m", target=target, **options), find(target))
    assert found is not None
    return found


def test_no_recipe_is_none() -> None:
    assert effective_recipe(BuildOptions(model="m", target="cpu"), find("cpu")) is None


def test_a_recipe_that_the_target_has_is_left_alone() -> None:
    found = effective("cpu", recipe="int8")
    assert set(found.recipe.sections) == {"denoiser"} and not found.degraded
    assert found.lines() == ["recipe     int8; denoiser: int8 channel weights, int8 static tensor activations"]


@pytest.mark.parametrize(
    ("target", "weights"),
    [("rtx-4060", "int4 block-128 weights"), ("jetson-orin-nano-8gb", "int8 channel weights"), ("rtx-2060", "int8 channel weights")],
)
def test_small_devices_get_small_text_encoders(target: str, weights: str) -> None:
    assert describe(effective(target, recipe="vidit-q-w8a8").recipe.sections["text_encoder"].default) == weights


def test_large_devices_do_not() -> None:
    assert "text_encoder" not in effective("rtx-4090", recipe="vidit-q-w8a8").recipe.sections


def test_a_part_can_have_another_recipe_or_none() -> None:
    found = effective("rtx-4060", recipe="vidit-q-w8a8", parts={"text_encoder": "keep", "vae": "int8", "prelude": "int4-weight-only"})
    assert set(found.recipe.sections) == {"denoiser", "vae", "prelude"}
    assert describe(found.recipe.sections["vae"].default) == "int8 channel weights, int8 static tensor activations"
    assert found.recipe.sections["vae"].ends == "default"  # what is first and last in a denoiser says nothing of another part


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"decoder": "int8"}, "--component decoder: expected denoiser or prelude or text_encoder or vae, got 'decoder'"),
        ({"vae": "int9"}, "recipe int9: expected a known recipe or a .yaml file, got 'int9'; did you mean int8"),
    ],
)
def test_a_bad_part_is_named(parts: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        effective("cpu", recipe="int8", parts=parts)


def test_what_the_target_cannot_do_is_refused_or_listed() -> None:
    with pytest.raises(
        UserError, match=r"cpu: denoiser: expected a form that openvino computes exactly, got e4m3 tensor weights.*--allow-degrade"
    ):
        effective("cpu", recipe="fp8")
    found = effective("cpu", recipe="fp8", allow_degrade=True)
    assert [(d.section, d.asked) for d in found.degraded] == [("denoiser", "e4m3 tensor weights, e4m3 static tensor activations")]
    assert describe(found.recipe.sections["denoiser"].default).startswith("int8")
    assert found.lines()[1].startswith("degraded   denoiser: e4m3 tensor weights")
    assert not effective("rtx-4090", recipe="fp8").degraded


def test_mixed_precision_choices_are_checked_too(tmp_path: Path) -> None:
    text = """
name: mixed
summary: of ours
denoiser:
  default: {weights: {format: int8}}
  mixed_precision: {average_bits: 8, choices: {low: {weights: {format: nvfp4}, activations: {format: nvfp4, mode: dynamic}}}}
"""
    (tmp_path / "mixed.yaml").write_text(text)
    with pytest.raises(UserError, match="nvfp4"):
        effective("cpu", recipe=str(tmp_path / "mixed.yaml"))


def test_treatments_in_words() -> None:
    section = effective("rtx-4090", recipe="svdquant-w4a4", allow_degrade=True).recipe.sections["denoiser"]
    assert "with a low-rank branch" in describe(section.default) and "balanced" in describe(section.default)
    assert describe(None) == "16 bits"


DGQ_ATTENTION = "attention to text in int8, probabilities in log2-8, but for its first token"


def test_attention_is_built_where_a_kernel_fuses_it_and_else_refused_or_kept_in_16_bits() -> None:
    found = effective("rtx-4090", recipe="fp8-attention")
    assert found.recipe.sections["denoiser"].attention is not None and not found.degraded
    assert found.lines()[0].endswith("activations; attention in e4m3, probabilities in e4m3")
    with pytest.raises(UserError, match=r"attention in e4m3.*attention between fp32 layers is not fused.*--allow-degrade"):
        effective("rtx-4090", recipe="fp8-attention", precision="fp32")
    with pytest.raises(UserError, match="no kernel multiplies probabilities in log2-8 with values in int8"):
        effective("rtx-4090", recipe="dgq-w4a8")
    found = effective("rtx-4090", recipe="dgq-w4a8", allow_degrade=True)
    assert found.recipe.sections["denoiser"].attention is None
    assert (DGQ_ATTENTION, "attention in 16 bits") in {(d.asked, d.built) for d in found.degraded}


@pytest.mark.parametrize("budget", [{"average_bits": 5.0}, {"budget_bytes": 10**6}, {"budget_ms": 3.0}])
def test_a_budget_for_a_recipe_that_leaves_no_choice(budget: dict[str, Any]) -> None:
    flag = next(iter(budget)).replace("_", "-")
    with pytest.raises(UserError, match=f"--{flag}: expected a recipe with mixed precision, got int8, .*; use vidit-q-mp"):
        effective("rtx-4090", recipe="int8", **budget)
    assert effective("rtx-4090", recipe="int8", parts={"denoiser": "mixdq-w8a8"}, **budget).recipe.name == "int8"
