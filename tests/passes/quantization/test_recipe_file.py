"""Recipe files: those that come with dexport, and errors that name the offending key."""

from __future__ import annotations

from pathlib import Path

import pytest

from dexport.errors import UserError
from dexport.passes.quantization.recipe import MICRO_FORMATS, SECTIONS, LowRankSpec, Recipe, Section, Treatment, WeightSpec
from dexport.passes.quantization.recipe_file import find_recipe, read_recipe, recipe_names
from dexport.plugins.formats import format_of

FROM_THE_ISSUE = {
    *("vidit-q-w8a8", "vidit-q-w4a8", "vidit-q-w6a6", "vidit-q-mp", "svdquant-w4a4", "svdquant-w4a8", "ptq4dm-w8a8", "q-diffusion-w4a8"),
    *("tfmq-w4a8", "eda-dm-w4a8", "mixdq-w8a8", "dgq-w4a8", "fp4dit-w4a6", "lowbit-fp-w4a8", "int8", "fp8", "nvfp4", "int4-weight-only"),
    "smoothquant",
}


def _treatments(section: Section) -> list[Treatment]:
    choices = [] if section.mixed_precision is None else section.mixed_precision.choices.values()
    every = [section.default, *section.layers.values(), None if section.ends == "default" else section.ends, *choices]
    return [treatment for treatment in every if treatment is not None]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads(name: str) -> None:
    recipe = find_recipe(name)
    assert recipe.name == name and len(recipe.summary) > 20
    assert recipe.sections and set(recipe.sections) <= set(SECTIONS)
    treatments = [treatment for section in recipe.sections.values() for treatment in _treatments(section)]
    assert treatments
    for treatment in treatments:
        formats = [spec.format for spec in (treatment.weights, treatment.activations) if spec is not None]
        for text in formats:
            for format in text.split("|"):
                assert format in MICRO_FORMATS or format_of(format).bits <= 8


def test_published_configurations_have_their_recipe() -> None:
    assert set(recipe_names()) >= FROM_THE_ISSUE


def test_bits_of_a_name_are_those_of_the_recipe() -> None:
    """w4a8 quantizes weights to 4 bits and activations to 8."""
    named = [name for name in recipe_names() if name.rpartition("-")[2][:1] == "w" and "a" in name.rpartition("-")[2]]
    assert len(named) > 8
    for name in named:
        weights, activations = name.rpartition("-")[2][1:].split("a")
        default = find_recipe(name).sections["denoiser"].default
        assert default is not None and default.weights is not None and default.activations is not None
        assert {str(format_of(f).bits) for f in default.weights.format.split("|")} == {weights}, name
        assert {str(format_of(f).bits) for f in default.activations.format.split("|")} == {activations}, name


def test_the_nearest_names_are_offered() -> None:
    with pytest.raises(UserError, match=r"recipe svdquant-w4a5: .*got 'svdquant-w4a5'; did you mean svdquant-w4a[48] or"):
        find_recipe("svdquant-w4a5")
    with pytest.raises(UserError, match="`dexport recipes` lists all"):
        find_recipe("zzz")


def test_a_file_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "name: own\nsummary: mine\nsampler: ndtc\n"
        "denoiser:\n  ends: keep\n  default: {weights: {format: int4}, low_rank: {rank: 8}}\n"
        "  layers: {'re:a$': keep, b: {weights: {format: int8}}}\n"
    )
    weights = WeightSpec(format="int4")
    section = Section(
        default=Treatment(weights=weights, low_rank=LowRankSpec(rank=8)),
        layers={"re:a$": None, "b": Treatment(weights=WeightSpec(format="int8"))},
        ends=None,
    )
    assert find_recipe(str(path)) == Recipe(name="own", summary="mine", sampler="ndtc", sections={"denoiser": section})
    path.write_bytes(b"name: \xff")
    with pytest.raises(UserError, match="expected a recipe file, got not UTF-8"):
        find_recipe(str(path))
    with pytest.raises(UserError, match="got No such file"):
        find_recipe(str(tmp_path / "missing.yml"))


def _denoiser(text: str) -> str:
    return f"name: x\nsummary: y\ndenoiser: {text}"


def _default(text: str) -> str:
    return _denoiser(f"{{default: {text}}}")


W4 = "weights: {format: int4}"
MALFORMED = [
    ("name: [", "expected YAML"),
    ("- a", "expected a mapping with name, summary and sections, got list"),
    ("summary: y", "expected the key name, got none"),
    ("name: x\nsummary: y\ndenoise: {}", "expected one of the keys denoiser, got 'denoise'"),
    ("name: x\nsummary: y\nsampler: normal", "recipe: sampler: expected uniform or ndtc"),
    ("name: x\nsummary: y\ndenoiser:", "recipe: denoiser: expected a mapping"),
    (_denoiser("{defaults: keep}"), "denoiser: expected one of the keys default, got 'defaults'"),
    (_denoiser("{layers: [a]}"), "denoiser: layers: expected a mapping"),
    (_denoiser("{layers: {'re:(': keep}}"), r"layers: re:\(: expected a regular expression"),
    (_denoiser("{layers: {a: 3}}"), "denoiser: a: expected a mapping"),
    (_denoiser("{attention: {format: e4m3}}"), "attention: expected the key probabilities"),
    (_denoiser("{attention: {format: nvfp4, probabilities: e4m3}}"), "attention: format: expected a number format, got 'nvfp4'"),
    (_denoiser("{attention: {format: int8, probabilities: log3}}"), "attention: probabilities: expected e4m3 or log2-B"),
    (_denoiser("{attention: {format: int8, probabilities: log2-8, keys: none}}"), "attention: keys: expected all or text, got 'none'"),
    (_denoiser("{attention: {format: int8, probabilities: log2-8, start_tokens: -1}}"), "start_tokens: expected a number of tokens"),
    (_denoiser("{reconstruction: {unit: model}}"), "reconstruction: unit: expected layer or block"),
    (_denoiser("{reconstruction: {iterations: many}}"), "reconstruction: iterations: expected int, got 'many'"),
    (_denoiser("{reconstruction: {activations: 1}}"), "reconstruction: activations: expected bool, got 1"),
    (_denoiser("{mixed_precision: {}}"), "mixed_precision: expected the key choices"),
    (_denoiser("{mixed_precision: {choices: [a]}}"), "mixed_precision: choices: expected a mapping"),
    (
        _denoiser("{mixed_precision: {choices: {}, metric: best}}"),
        "mixed_precision: metric: expected sqnr or output or model or end-to-end",
    ),
    (_denoiser("{mixed_precision: {choices: {}, groups: {a: 're:['}}}"), "mixed_precision: groups: re:.*expected a regular expression"),
    (_default("{weight: {format: int4}}"), "default: expected one of the keys weights, got 'weight'"),
    (_default("{weights: {}}"), "default: weights: expected the key format"),
    (_default("{weights: {format: int9}}"), "weights: format: expected a number format, got 'int9'; .*known are int8"),
    (_default("{weights: {format: 8}}"), "weights: format: expected str, got 8"),
    (_default("{weights: {format: 'int4|int1'}}"), "weights: format: expected a number format, got 'int1'"),
    (
        _default("{weights: {format: int4, granularity: block-0}}"),
        "weights: granularity: expected tensor, channel or block-N, got 'block-0'",
    ),
    (_default("{weights: {format: int4, granularity: 64}}"), "weights: granularity: expected str, got 64"),
    (_default("{weights: {format: int4, range: ema}}"), "weights: range: expected minmax"),
    (
        _default("{weights: {format: int4, range: percentile-101}}"),
        "weights: range: expected P above 0 and at most 100, got 'percentile-101'",
    ),
    (_default("{weights: {format: int4, rounding: up}}"), "weights: rounding: expected nearest or gptq or adaround, got 'up'"),
    (_default("{activations: {format: int8}}"), "expected weights beside activations"),
    (_default(f"{{{W4}, activations: {{format: int8, mode: tables}}}}"), "activations: mode: expected static or table"),
    (_default(f"{{{W4}, activations: {{format: int8, granularity: channel}}}}"), "activations: granularity: expected tensor, token"),
    (
        _default(f"{{{W4}, activations: {{format: int8, granularity: block-8}}}}"),
        "activations: granularity: .*'block-8'; or choose mode dynamic",
    ),
    (
        _default(f"{{{W4}, activations: {{format: int8, mode: dynamic, granularity: groups-8}}}}"),
        "granularity: .*or choose mode static or table",
    ),
    (_default(f"{{{W4}, activations: {{format: mxfp4}}}}"), "activations: mode: expected dynamic for mxfp4, got static"),
    (_default(f"{{{W4}, balance: {{method: awq}}}}"), "balance: method: expected smoothquant or vidit-q or search, got 'awq'"),
    (_default(f"{{{W4}, rotate: true}}"), "rotate: expected hadamard, got True"),
    (_default(f"{{{W4}, low_rank: {{rank: big}}}}"), "low_rank: rank: expected int, got 'big'"),
    (_default(f"{{{W4}, low_rank: {{rank: 0}}}}"), "low_rank: expected a rank and iterations of at least 1"),
    (_default(f"{{{W4}, bypass_tokens: some}}"), "bypass_tokens: expected a number of tokens or auto, got 'some'"),
    (_default(f"{{{W4}, split_concat: 2}}"), "split_concat: expected true or false, got 2"),
]


@pytest.mark.parametrize(("text", "message"), MALFORMED)
def test_the_offending_key_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_recipe(text, "recipe")
