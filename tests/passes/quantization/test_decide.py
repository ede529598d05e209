"""From treatments and statistics to values: what is skipped and why, what is read when, and what the graphs then compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dexport.passes.graph import Graph, Weight, run
from dexport.passes.quantization.decide import Decisions, activation_values, decide, fitted_treatment
from dexport.passes.quantization.quantize import quantize
from dexport.passes.quantization.recipe import ActivationSpec, BalanceSpec, LowRankSpec, Treatment, WeightSpec
from dexport.passes.quantization.rotation import rotate
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.sites import sites
from dexport.passes.quantization.statistics import SiteStatistics
from dexport.passes.quantization.step_table import QUANTIZATION_VALUES
from dexport.passes.quantization.values import ActivationValues, SiteValues
from tests.passes.quantization.layers import TOKENS, convolutions, entering, latent, linears, observed, seen_of

W8, W4 = WeightSpec(format="int8"), WeightSpec(format="int4")
STATIC, DYNAMIC = ActivationSpec(format="int8"), ActivationSpec(format="int8", mode="dynamic")
TABLE = ActivationSpec(format="int8", mode="table")
SEARCH = BalanceSpec(method="search")
NAMES = ("enter", "q", "k", "v", "join", "odd", "flat", "leave")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return linears()


@pytest.fixture(scope="module")
def pictures() -> Graph:
    return convolutions()


@pytest.fixture(scope="module")
def seen(graph: Graph) -> dict[str, SiteStatistics]:
    """Three steps, the last of them four times as large."""
    return observed(graph, [{"latent": latent(graph, 1, step)["latent"] * size} for step, size in enumerate((1, 2, 4))])


@pytest.fixture(scope="module")
def seen_pictures(pictures: Graph) -> dict[str, SiteStatistics]:
    return observed(pictures, [latent(pictures, 1, step) for step in range(3)])


def _decide(graph: Graph, treatment: Treatment | None, seen: Mapping[str, SiteStatistics], folder: Path, *names: str) -> Decisions:
    """The treatment for the named sites, or for all."""
    return decide(graph, {site.name: treatment for site in sites(graph) if site.name in (names or NAMES)}, seen, Scratch(folder))


def _activations(decisions: Decisions, site: str) -> ActivationValues:
    found = decisions.values[site].parts[0].activations
    assert found is not None
    return found


def _decibels(graph: Graph, values: Mapping[str, SiteValues], step: int = 0, size: float = 1) -> float:
    """Signal to noise of the output of a picture that calibration did not see."""
    found = quantize(graph, values)
    inputs = {"latent": latent(graph, 2, 99)["latent"] * size}
    given = inputs if found.rows is None else inputs | {QUANTIZATION_VALUES: found.rows[step : step + 1]}
    exact, result = run(graph, inputs)["out"], run(found.graph, given)["out"]
    return float(10 * torch.log10(exact.square().sum() / (result - exact).square().sum()))


def test_what_the_recipe_keeps_is_kept(graph: Graph, tmp_path: Path) -> None:
    found = decide(graph, {"q": Treatment(weights=W8), "k": None, "v": Treatment(balance=None)}, {}, Scratch(tmp_path))
    assert set(found.values) == {"q"} and not found.notes
    assert found.skipped == dict.fromkeys(set(NAMES) - {"q"}, "the recipe keeps it")


def test_what_calibration_did_not_reach_is_skipped(graph: Graph, seen: dict[str, SiteStatistics], tmp_path: Path) -> None:
    some = {name: site for name, site in seen.items() if name != "odd"}
    for treatment in (
        Treatment(weights=W8, activations=STATIC),
        Treatment(weights=W8, balance=BalanceSpec(method="smoothquant")),
        Treatment(weights=replace(W8, rounding="gptq")),
        Treatment(weights=W8, bypass_tokens="auto"),
    ):
        assert _decide(graph, treatment, some, tmp_path).skipped == {"odd": "calibration did not reach it"}
    assert not _decide(graph, Treatment(weights=W8, activations=DYNAMIC), {}, tmp_path).skipped  # needs none


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("odd", {"weights": WeightSpec(format="nvfp4")}, "6 inputs are no multiple of the block of 16"),
    ("odd", {"activations": replace(DYNAMIC, granularity="block-4")}, "6 inputs are no multiple of the activation block"),
    ("odd", {"rotate": "hadamard"}, "no Hadamard matrix is known for 6 channels"),
    ("odd", {"low_rank": LowRankSpec(rank=7)}, "a branch of rank 7 is larger than its weight 16x6"),
    ("v", {"weights": WeightSpec(format="nvfp4", range="mse")}, "range must be minmax, not mse"),
    ("flat", {"activations": replace(STATIC, granularity="token")}, "number of its tokens is not fixed"),
    ("flat", {"activations": replace(TABLE, granularity="token-groups-4")}, "number of its tokens is not fixed"),
    ("v", {"activations": replace(STATIC, granularity="token"), "rotate": "hadamard"}, "not known after balancing or rotation"),
    ("flat", {"bypass_tokens": 1}, "has no 1 leading tokens"),
    ("v", {"bypass_tokens": TOKENS}, f"has no {TOKENS} leading tokens beside others"),
    ("join", {"split_concat": True, "weights": replace(W4, granularity="block-24")}, "16 inputs of a part are no multiple"),
]  # fmt: skip


@pytest.mark.parametrize(("site", "treatment", "reason"), REFUSED)
def test_what_cannot_be_done_is_skipped_with_the_reason(
    graph: Graph, seen: dict[str, SiteStatistics], tmp_path: Path, site: str, treatment: dict[str, Any], reason: str
) -> None:
    found = _decide(graph, Treatment(**({"weights": W4} | treatment)), seen, tmp_path, site)
    assert site not in found.values and site not in found.notes and reason in found.skipped[site]


def test_a_block_that_does_not_divide_becomes_one_that_does(graph: Graph, tmp_path: Path) -> None:
    blocks = Treatment(
        weights=WeightSpec(format="int4", granularity="block-32"),
        activations=ActivationSpec(format="int4", mode="dynamic", granularity="block-32"),
    )
    found = _decide(graph, blocks, {}, tmp_path, "join", "odd", "q")
    assert found.notes == {
        "join": "block-24 instead of block-32: 48 inputs",
        "odd": "channel instead of block-32: 6 inputs",
        "q": "block-16 instead of block-32: 16 inputs",
    }
    assert found.values["join"].parts[0].scale.shape == (16, 2) and _activations(found, "join").block == 24
    assert found.values["odd"].parts[0].scale.shape == (16, 1) and _activations(found, "odd").block == 0
    assert _decibels(graph, found.values) > 10
    whole = replace(blocks, weights=WeightSpec(format="int4", granularity="block-16"))
    fitted, note = fitted_treatment(next(s for s in sites(graph) if s.name == "q"), whole)
    assert fitted == whole and not note


def _counting(graph: Graph) -> tuple[Graph, dict[str, int]]:
    """The graph, and how often each of its weights was read."""
    reads: dict[str, int] = {}

    def counted(name: str, weight: Weight) -> Weight:
        def load() -> torch.Tensor:
            reads[name] = reads.get(name, 0) + 1
            return weight.load()

        return replace(weight, load=load)

    return replace(graph, weights={name: counted(name, weight) for name, weight in graph.weights.items()}), reads


def test_weights_are_read_when_they_are_needed(graph: Graph, seen: dict[str, SiteStatistics], tmp_path: Path) -> None:
    counting, reads = _counting(graph)
    for treatment in (
        Treatment(weights=W4, activations=DYNAMIC, rotate=None),
        Treatment(weights=W4, activations=TABLE, bypass_tokens=1),
        Treatment(weights=WeightSpec(format="nvfp4"), activations=ActivationSpec(format="nvfp4", mode="dynamic")),
    ):
        quantize(counting, _decide(counting, treatment, seen, tmp_path, "q", "join", "leave").values)
        assert not reads
    assert not list(tmp_path.iterdir())
    found = _decide(counting, Treatment(weights=W4, balance=BalanceSpec(method="smoothquant")), seen, tmp_path, "q", "k")
    assert reads == {"q.weight": 1, "k.weight": 1}  # for the multiplier
    found.values["q"].parts[0].codes.load()
    assert reads == {"q.weight": 2, "k.weight": 1}


def test_what_took_long_is_kept(graph: Graph, seen: dict[str, SiteStatistics], tmp_path: Path) -> None:
    counting, reads = _counting(graph)
    for treatment in (
        Treatment(weights=replace(W4, rounding="gptq"), activations=STATIC),
        Treatment(weights=W4, low_rank=LowRankSpec(rank=2, iterations=2)),
        Treatment(weights=WeightSpec(format="e2m1|e1m2", granularity="tensor", range="float-search")),
    ):
        reads.clear()
        values = _decide(counting, treatment, seen, tmp_path, "q").values["q"]
        assert reads == {"q.weight": 1}
        for weight in (values.parts[0].codes, values.parts[0].scale, *(values.branch or ())):
            weight.load()
        assert reads == {"q.weight": 1}


def test_static_scales_and_tables(graph: Graph, seen: dict[str, SiteStatistics], tmp_path: Path) -> None:
    static, table = (_decide(graph, Treatment(weights=W8, activations=a), seen, tmp_path) for a in (STATIC, TABLE))
    for name in NAMES:
        absmax = seen[name].absmax.amax(1)
        one, each = _activations(static, name), _activations(table, name)
        assert one.mode == "static" and one.scale is not None and torch.allclose(one.scale, absmax.amax() / 127) and one.scale.dim() == 0
        assert each.mode == "table" and each.scale is not None and torch.allclose(each.scale, absmax / 127)
    centred = _activations(_decide(graph, Treatment(weights=W8, activations=replace(TABLE, centred=True)), seen, tmp_path, "q"), "q")
    low, high = seen["q"].minimum.amin(1), seen["q"].maximum.amax(1)
    assert centred.scale is not None and torch.allclose(centred.scale, (high - low) / 254, atol=1e-7)
    assert centred.centre is not None and torch.allclose(centred.centre, (high + low) / 2, atol=1e-7)
    tokens = _activations(_decide(graph, Treatment(weights=W8, activations=replace(TABLE, granularity="token")), seen, tmp_path, "q"), "q")
    assert tokens.scale is not None and tokens.scale.shape == (3, TOKENS)


def test_a_table_serves_a_small_step_better_than_one_scale(graph: Graph, seen: dict[str, SiteStatistics], tmp_path: Path) -> None:
    a4 = replace(STATIC, format="int4"), replace(TABLE, format="int4")
    static, table = (_decide(graph, Treatment(weights=W8, activations=a), seen, tmp_path, "enter").values for a in a4)
    assert _decibels(graph, table) > _decibels(graph, static) + 6
    assert _decibels(graph, table, 2, 4) > 10


TREATMENTS: dict[str, tuple[Treatment, float]] = {
    "static": (Treatment(weights=W8, activations=STATIC), 25),
    "table": (Treatment(weights=W8, activations=replace(TABLE, centred=True)), 25),
    "mse": (Treatment(weights=replace(W8, range="mse"), activations=replace(STATIC, range="mse")), 25),
    "dynamic": (Treatment(weights=W8, activations=DYNAMIC), 35),
    "centred": (Treatment(weights=W8, activations=replace(DYNAMIC, mode="dynamic-centred")), 35),
    "balanced": (Treatment(weights=W8, activations=DYNAMIC, balance=BalanceSpec(method="vidit-q", alpha=0.01)), 25),
    "rotated": (Treatment(weights=W8, activations=DYNAMIC, balance=BalanceSpec(method="smoothquant"), rotate="hadamard"), 35),
    "rotated table": (Treatment(weights=W8, activations=TABLE, rotate="hadamard"), 20),
    "split": (Treatment(weights=W8, activations=TABLE, split_concat=True), 25),
    "groups": (Treatment(weights=W8, activations=replace(TABLE, granularity="groups-4")), 25),
    "channel groups": (Treatment(weights=W8, activations=replace(STATIC, granularity="channel-groups-4")), 25),
    "token groups": (Treatment(weights=W8, activations=replace(STATIC, granularity="token-groups-4")), 25),
    "bypass": (Treatment(weights=W8, activations=TABLE, bypass_tokens=2), 25),
    "gptq": (Treatment(weights=replace(W8, rounding="gptq"), activations=STATIC), 25),
    "low rank": (Treatment(weights=W4, activations=DYNAMIC, balance=SEARCH, low_rank=LowRankSpec(rank=6, iterations=3)), 20),
    "nvfp4": (Treatment(weights=WeightSpec(format="nvfp4"), activations=ActivationSpec(format="nvfp4", mode="dynamic")), 10),
    "fp8": (Treatment(weights=WeightSpec(format="e4m3", granularity="tensor"), activations=replace(STATIC, format="e4m3")), 20),
    "choice": (Treatment(weights=W8, activations=replace(STATIC, format="e3m4|e4m3|e5m2", range="float-search")), 20),
}  # fmt: skip


@pytest.mark.parametrize("name", TREATMENTS)
def test_every_treatment_keeps_the_output(graph: Graph, seen: dict[str, SiteStatistics], tmp_path: Path, name: str) -> None:
    treatment, decibels = TREATMENTS[name]
    found = _decide(graph, treatment, seen, tmp_path)
    assert len(found.values) >= 6
    assert _decibels(graph, found.values) > decibels


def test_the_branch_helps(graph: Graph, seen: dict[str, SiteStatistics], tmp_path: Path) -> None:
    plain = Treatment(weights=W4)
    names = ("enter", "q", "join", "leave")
    without, with_branch = (
        _decibels(graph, _decide(graph, treatment, seen, tmp_path, *names).values)
        for treatment in (plain, replace(plain, low_rank=LowRankSpec(rank=6, iterations=5)))
    )
    assert with_branch > without + 2


def test_sites_of_one_value_share_multiplier_and_rotation(graph: Graph, seen: dict[str, SiteStatistics], tmp_path: Path) -> None:
    treatment = Treatment(weights=W8, activations=DYNAMIC, balance=BalanceSpec(method="smoothquant"), rotate="hadamard")
    values = _decide(graph, treatment, seen, tmp_path).values
    assert values["q"].multiplier is values["k"].multiplier is values["v"].multiplier
    assert values["q"].multiplier is not values["leave"].multiplier
    assert values["q"].signs is not None and values["k"].signs is not None and torch.equal(values["q"].signs, values["k"].signs)


def test_ranges_are_those_of_the_changed_activation(graph: Graph, seen: dict[str, SiteStatistics], tmp_path: Path) -> None:
    treatment = Treatment(weights=W8, activations=STATIC, balance=BalanceSpec(method="smoothquant"), rotate="hadamard")
    found = _decide(graph, treatment, seen, tmp_path, "q").values["q"]
    activations = found.parts[0].activations
    assert found.multiplier is not None and found.signs is not None and activations is not None and activations.scale is not None
    expected = rotate(seen["q"].rows * found.multiplier, found.signs).abs().amax() / 127
    assert torch.allclose(activations.scale, expected, rtol=1e-5)


def test_pieces_of_a_concatenation(graph: Graph, seen: dict[str, SiteStatistics], tmp_path: Path) -> None:
    found = _decide(graph, Treatment(weights=W8, activations=STATIC, split_concat=True), seen, tmp_path, "join", "q").values
    assert [part.channels for part in found["join"].parts] == [tuple(range(start, start + 16)) for start in (0, 16, 32)]
    for part in found["join"].parts:
        assert part.channels is not None and part.activations is not None and part.activations.scale is not None
        assert torch.allclose(part.activations.scale, seen["join"].absmax[:, part.channels].amax() / 127)
    assert [part.channels for part in found["q"].parts] == [None]
    rotated = _decide(graph, Treatment(weights=W8, split_concat=True, rotate="hadamard"), seen, tmp_path, "join")
    assert len(rotated.values["join"].parts) == 1 and "rotation mixes them" in rotated.notes["join"]


def test_groups_of_channels(graph: Graph, seen: dict[str, SiteStatistics], tmp_path: Path) -> None:
    treatment = Treatment(weights=W8, activations=replace(TABLE, granularity="channel-groups-3"))
    parts = _decide(graph, treatment, seen, tmp_path, "enter").values["enter"].parts
    channels = [part.channels or () for part in parts]
    assert len(parts) == 3 and sorted(sum(channels, ())) == list(range(16))
    for part in parts:
        assert part.activations is not None and part.activations.scale is not None and part.channels is not None
        assert torch.allclose(part.activations.scale, seen["enter"].absmax[:, part.channels].amax(1) / 127)
        assert torch.equal(part.scale.load(), parts[0].scale.load())  # outputs have one scale, whatever the group


def test_tokens_that_are_too_large_bypass(graph: Graph, tmp_path: Path) -> None:
    steps = torch.randn(2, TOKENS, 16, generator=torch.Generator().manual_seed(0))
    steps[:, 0] *= 60
    seen = {name: seen_of(steps) for name in ("q", "leave")} | {"k": seen_of(steps[:, 1:])}
    found = _decide(graph, Treatment(weights=W8, activations=STATIC, bypass_tokens="auto"), seen, tmp_path, "q", "k").values
    assert found["q"].bypass == 1 and found["k"].bypass == 0
    one, other = (found[name].parts[0].activations for name in ("q", "k"))
    assert one is not None and other is not None and one.scale is not None and other.scale is not None
    assert torch.equal(one.scale, other.scale)  # what bypasses does not widen the range


def test_convolutions(pictures: Graph, seen_pictures: dict[str, SiteStatistics], tmp_path: Path) -> None:
    names = ("first", "second", "third")
    exact = _decide(pictures, Treatment(weights=W8), {}, tmp_path, *names)
    inputs = latent(pictures)
    assert torch.equal(run(quantize(pictures, exact.values).graph, inputs)["out"], run(pictures, inputs)["out"])
    for activations in (STATIC, TABLE, replace(DYNAMIC, mode="dynamic-centred"), replace(TABLE, granularity="groups-4", centred=True)):
        treatment = Treatment(weights=W8, activations=activations, balance=SEARCH, rotate="hadamard", low_rank=LowRankSpec(rank=2))
        found = _decide(pictures, treatment, seen_pictures, tmp_path, *names)
        assert not found.skipped and all(v.multiplier is v.signs is v.branch is None for v in found.values.values())
        assert _decibels(pictures, found.values) > 20, activations


def test_convolutions_over_a_concatenation(pictures: Graph, seen_pictures: dict[str, SiteStatistics], tmp_path: Path) -> None:
    found = _decide(
        pictures, Treatment(weights=W8, activations=STATIC, split_concat=True), seen_pictures, tmp_path, "second", "third"
    ).values
    assert [part.channels for part in found["second"].parts] == [tuple(range(8)), tuple(range(8, 12))]
    assert len(found["third"].parts) == 1  # in groups: its inputs cannot be divided so
    assert _decibels(pictures, found) > 20


def test_what_convolutions_do_not_have(pictures: Graph, seen_pictures: dict[str, SiteStatistics], tmp_path: Path) -> None:
    gptq = Treatment(weights=WeightSpec(format="int8", granularity="block-32", rounding="gptq"))
    notes = _decide(pictures, gptq, seen_pictures, tmp_path, "first").notes["first"]
    assert "GPTQ is for linears" in notes and "kernels have no blocks" in notes
    skipped = _decide(pictures, Treatment(weights=WeightSpec(format="nvfp4")), {}, tmp_path, "first").skipped["first"]
    assert "3x3" in skipped
    micro = Treatment(weights=W8, activations=ActivationSpec(format="mxfp4", mode="dynamic"))
    assert "mxfp4 is for linears" in _decide(pictures, micro, {}, tmp_path, "first").skipped["first"]


def test_activation_values() -> None:
    seen = seen_of(torch.randn(3, 8, 16))
    assert activation_values(replace(DYNAMIC, granularity="block-8"), None) == ActivationValues("int8", "dynamic", 8, "")
    assert activation_values(ActivationSpec(format="mxfp4", mode="dynamic"), None) == ActivationValues("e2m1", "dynamic", 32, "mxfp4")
    found = activation_values(ActivationSpec(format="nvfp4", mode="dynamic"), seen)
    assert (found.format, found.block, found.micro) == ("e2m1", 16, "nvfp4")
    assert found.scale is not None and torch.allclose(found.scale, seen.absmax.amax() / (6 * 448))


def test_the_input_is_what_the_original_reads(graph: Graph) -> None:
    """The helper of these tests: statistics are of the value that a site reads."""
    inputs = latent(graph, 1)
    assert torch.equal(entering(graph, inputs)["enter"], inputs["latent"])
    assert torch.equal(observed(graph, [inputs])["enter"].rows, inputs["latent"][0])
