"""What two sides are asked for in common, and what cannot be compared; whole comparisons are in dexport/test_comparing.py."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dexport.errors import UserError
from dexport.exporter.compare import Asked, agreed, captions, conditions_for, kernel_counts, kernels_of, versions
from dexport.exporter.engines.kernels import KernelCounts, KernelSummary
from dexport.exporter.sides import Abilities, Setting
from tests.runtime.sample_bundle import sample_manifest

SETTING = Setting(size=(16, 16), steps=20, guidance=4.5)
BUNDLE = Abilities(
    classes=None, sizes=((16, 16), (16, 24)), steps=(20, 4), fixed=True, setting=dataclasses.replace(SETTING, scheduler="DDIM")
)
MODEL = Abilities(classes=None, sizes=((32, 32),), steps=(50,), fixed=False, setting=dataclasses.replace(SETTING, guidance=7.0, steps=50))


def _with(abilities: Abilities, **changes: Any) -> Abilities:
    return dataclasses.replace(abilities, **changes)


@pytest.mark.parametrize("sides", [(BUNDLE, MODEL), (MODEL, BUNDLE), (BUNDLE, BUNDLE)])
def test_a_bundle_decides_what_a_directory_is_asked_for(sides: tuple[Abilities, Abilities]) -> None:
    found = agreed(*sides, Asked())
    assert (found.size, found.steps, found.guidance, found.scheduler) == ((16, 16), 20, 4.5, "DDIM")


def test_two_directories_can_do_anything() -> None:
    assert agreed(MODEL, MODEL, Asked()).steps == 50
    found = agreed(MODEL, MODEL, Asked(steps=7, size=(64, 64), guidance=1.5))
    assert (found.steps, found.size, found.guidance) == (7, (64, 64), 1.5)


def test_two_bundles_meet_at_what_both_have() -> None:
    other = _with(BUNDLE, sizes=((16, 24),), steps=(8, 4))
    found = agreed(BUNDLE, other, Asked())
    assert (found.size, found.steps) == ((16, 24), 4)
    assert agreed(BUNDLE, MODEL, Asked(steps=4, size=(16, 24))).size == (16, 24)


@pytest.mark.parametrize(
    ("other", "asked", "message"),
    [
        (_with(BUNDLE, steps=(8,)), Asked(), "compare: expected two sides with the same steps, got 20, 4 and 8"),
        (_with(BUNDLE, sizes=((8, 8),)), Asked(), "two sides with the same size, got 16x16, 16x24 and 8x8"),
        (
            BUNDLE,
            Asked(steps=5),
            "--steps: expected one of 20, 4, which both sides have, got 5; ask for one of them, or rebuild with --steps 5",
        ),
        (MODEL, Asked(size=(8, 8)), "--size: expected one of 16x16, 16x24, which both sides have, got 8x8"),
        (_with(MODEL, classes=10), Asked(), "the same kind of prompts, got prompts and class labels"),
        (_with(BUNDLE, setting=dataclasses.replace(SETTING, frames=9)), Asked(), "the same frames, got None and 9"),
    ],
)
def test_what_cannot_be_compared_is_refused(other: Abilities, asked: Asked, message: str) -> None:
    with pytest.raises(UserError) as caught:
        agreed(BUNDLE, other, asked)
    assert message in str(caught.value)


def test_every_prompt_gets_as_many_pictures_as_seeds() -> None:
    assert conditions_for(BUNDLE, Asked(prompts=("a", "b"), seeds=2)) == ["a", "a", "b", "b"]
    assert conditions_for(BUNDLE, Asked()) == list(captions())


def test_classes_are_numbers_of_the_model() -> None:
    dit = _with(MODEL, classes=1000)
    assert conditions_for(dit, Asked(prompts=("3", "999"))) == [3, 999]
    ours = conditions_for(dit, Asked())
    assert len(set(ours)) == 16 and all(isinstance(label, int) and 0 <= label < 1000 for label in ours)
    assert conditions_for(_with(MODEL, classes=2), Asked()) == [0, 1]
    for text in ("1000", "a cat", "-1"):
        with pytest.raises(UserError, match="--prompts: expected class labels from 0 to 999"):
            conditions_for(dit, Asked(prompts=(text,)))


def test_captions_are_many_and_different() -> None:
    assert len(set(captions())) == len(captions()) == 16


def test_kernels_are_counted_by_precision() -> None:
    first = KernelCounts({"int8": 24, "fp16": 2}, {"fp16": 8}, {}, 3, 40, ("half[2x4]",))
    summary = KernelSummary(True, "", ("sm89",), (first, KernelCounts()))
    assert kernel_counts(summary.to_dict()) == {
        "GEMM int8": 24,
        "GEMM fp16": 2,
        "fused attention fp16": 8,
        "moves and conversions": 3,
        "other": 40,
        "attention that is not fused": 1,
    }
    loop, decoder = sample_manifest().components.values()
    compiled = dataclasses.replace(loop, variants=(dataclasses.replace(loop.variants[0], kernels=summary.to_dict()),))
    assert kernels_of({"loop": compiled, "decoder": decoder}) == {"loop": kernel_counts(summary.to_dict())}
    assert kernel_counts(KernelSummary(False, "encrypted", (), ()).to_dict()) == {}
    assert kernel_counts({"programs": "many"}) == kernel_counts({"programs": [3]}) == kernel_counts({"gemm": 1}) == {}


def test_versions_are_those_of_installed_packages() -> None:
    assert {"dexport", "torch"} <= set(versions())
