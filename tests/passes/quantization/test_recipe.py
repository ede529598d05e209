"""Recipes as values: which treatment a layer gets, what needs calibration."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dexport.errors import UserError
from dexport.passes.quantization.recipe import (
    ActivationSpec,
    BalanceSpec,
    LowRankSpec,
    MixedPrecisionSpec,
    Recipe,
    ReconstructionSpec,
    Section,
    Treatment,
    WeightSpec,
)

NAMES = ["enter", "blocks.0.to_q", "blocks.0.ff", "blocks.1.to_q", "blocks.1.ff", "leave"]
ENDS = frozenset({"enter", "leave"})
DEFAULT, EXACT, FIRST, SECOND, END = (Treatment(weights=WeightSpec(format=f"int{bits}")) for bits in (8, 6, 5, 4, 3))


def test_exact_names_go_before_patterns_before_ends_before_the_default() -> None:
    layers = {"re:to_q": FIRST, "re:blocks\\.1": SECOND, "blocks.1.ff": EXACT, "re:^leave$": None}
    found = Section(default=DEFAULT, layers=layers, ends=END).treatments(NAMES, ENDS, "here")
    assert found == {
        "enter": END,
        "blocks.0.to_q": FIRST,
        "blocks.0.ff": DEFAULT,
        "blocks.1.to_q": FIRST,  # the first of two patterns
        "blocks.1.ff": EXACT,  # though a pattern stands before it
        "leave": None,  # a pattern, although it is an end
    }


def test_patterns_go_in_the_order_of_the_file() -> None:
    layers = {"re:blocks": FIRST, "re:to_q": SECOND}
    assert Section(layers=layers).treatments(NAMES, ENDS, "")["blocks.0.to_q"] == FIRST
    assert Section(layers=dict(reversed(layers.items()))).treatments(NAMES, ENDS, "")["blocks.0.to_q"] == SECOND


def test_ends_may_be_kept_or_like_the_others() -> None:
    assert Section(default=DEFAULT, ends=None).treatments(NAMES, ENDS, "")["enter"] is None
    assert Section(default=DEFAULT).treatments(NAMES, ENDS, "")["enter"] == DEFAULT


@pytest.mark.parametrize("key", ["blocks.0.to_k", "re:attn", "to_q"])
def test_what_matches_nothing_is_an_error(key: str) -> None:
    section = Section(default=DEFAULT, layers={"re:blocks": FIRST, key: SECOND})
    with pytest.raises(UserError, match=rf"^my recipe: denoiser: {key}: expected a layer that it matches, got none; .*blocks\.0\.to_q"):
        section.treatments(NAMES, ENDS, "my recipe: denoiser")


@pytest.mark.parametrize(
    ("granularity", "format", "block"), [("channel", "int4", 0), ("tensor", "int4", 0), ("block-64", "int4", 64), ("channel", "nvfp4", 16)]
)
def test_blocks_of_weights(granularity: str, format: str, block: int) -> None:
    assert WeightSpec(format=format, granularity=granularity).block == block


@pytest.mark.parametrize(
    ("granularity", "format", "block"),
    [("token", "int8", 0), ("block-32", "int8", 32), ("channel-groups-8", "int8", 0), ("groups-8", "int8", 0), ("token", "mxfp4", 32)],
)
def test_blocks_of_activations(granularity: str, format: str, block: int) -> None:
    assert ActivationSpec(format=format, mode="dynamic", granularity=granularity).block == block


def test_what_needs_calibration() -> None:
    weights = WeightSpec(format="int4")
    plain = Treatment(weights=weights, activations=ActivationSpec(format="int8", mode="dynamic"), low_rank=LowRankSpec(rank=4))
    assert not plain.calibrated
    for changed in (
        replace(plain, activations=ActivationSpec(format="int8")),
        replace(plain, activations=ActivationSpec(format="int8", mode="table")),
        replace(plain, activations=ActivationSpec(format="nvfp4", mode="dynamic")),
        replace(plain, weights=replace(weights, rounding="gptq")),
        replace(plain, balance=BalanceSpec(method="search")),
        replace(plain, bypass_tokens="auto"),
    ):
        assert changed.calibrated
        assert Section(default=changed).calibrated and Section(layers={"x": changed}).calibrated and Section(ends=changed).calibrated
        assert Recipe(name="", summary="", sections={"vae": Section(ends=changed)}).calibrated
    assert not Section(default=plain, layers={"x": None}).calibrated
    assert Section(default=plain, reconstruction=ReconstructionSpec()).calibrated
    assert Section(default=plain, mixed_precision=MixedPrecisionSpec(choices={})).calibrated
    assert not Recipe(name="", summary="", sections={"vae": Section(default=plain)}).calibrated


def test_sections_by_name() -> None:
    section = Section(default=DEFAULT)
    recipe = Recipe(name="x", summary="", sections={"denoiser": section})
    assert recipe.section("denoiser") is section and recipe.section("vae") is None
