"""The recipes in words: for `dexport recipes` and `dexport recipes NAME`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dexport.exporter.attention_forms import describe_attention, exact_attention
from dexport.exporter.effective_recipe import describe
from dexport.exporter.quantized_forms import exact
from dexport.passes.quantization.recipe import MICRO_FORMATS, Recipe, Section, Treatment
from dexport.passes.quantization.recipe_file import find_recipe, recipe_names
from dexport.plugins.formats import format_of
from dexport.targets.catalogue import all_targets
from dexport.targets.target import Target

_FLOAT_BITS = "16"


@dataclass(frozen=True)
class RecipeRow:
    """One line of the list: name, bits such as "W4A8", what it needs, what it is."""

    name: str
    bits: str
    needs: str
    summary: str


def recipe_rows() -> list[RecipeRow]:
    """Every recipe that comes with dexport."""
    return [_row(find_recipe(name)) for name in recipe_names()]


def _row(recipe: Recipe) -> RecipeRow:
    return RecipeRow(recipe.name, _bits(recipe), needs(recipe), recipe.summary)


def _bits(recipe: Recipe) -> str:
    section = recipe.section("denoiser") or next(iter(recipe.sections.values()))
    found = [_bits_of(t) for t in treatments(section)]
    return " ".join(dict.fromkeys(found))


def _bits_of(treatment: Treatment) -> str:
    weights, activations = treatment.weights, treatment.activations
    return f"W{_width(None if weights is None else weights.format)}A{_width(None if activations is None else activations.format)}"


def _width(format: str | None) -> str:
    if format is None:
        return _FLOAT_BITS
    return str(max(format_of(MICRO_FORMATS.get(name, (name, 0))[0]).bits for name in format.split("|")))


def treatments(section: Section) -> list[Treatment]:
    """Every treatment that a section can give a layer."""
    choices = section.mixed_precision.choices.values() if section.mixed_precision else ()
    ends = section.ends if section.ends != "default" else None
    return [t for t in (section.default, *section.layers.values(), ends, *choices) if t is not None]


def needs(recipe: Recipe) -> str:
    """What has to be there before a build: nothing, calibration, or more."""
    if not recipe.calibrated:
        return "nothing"
    sections = recipe.sections.values()
    extras = {
        "learned rounding": any(s.reconstruction is not None for s in sections),
        "sensitivity": any(s.mixed_precision is not None for s in sections),
    }
    return ", ".join(["calibration", *(name for name, wanted in extras.items() if wanted)])


def explained(name: str) -> Iterator[tuple[str, str]]:
    """A recipe as pairs of a heading and a text.

    Raises:
        UserError: unknown or malformed.
    """
    recipe = find_recipe(name)
    yield "recipe", recipe.name
    yield "", recipe.summary
    if recipe.paper:
        yield "from", recipe.paper
    yield "bits", _bits(recipe)
    yield "needs", needs(recipe) + (f"; samples chosen by {recipe.sampler}" if recipe.calibrated and recipe.sampler != "uniform" else "")
    for part, section in recipe.sections.items():
        yield part, describe(section.default)
        if section.ends != "default":
            yield "  first and last", describe(section.ends)
        for pattern, treatment in section.layers.items():
            yield f"  {pattern}", describe(treatment)
        if section.attention is not None:
            yield "  attention", describe_attention(section.attention).removeprefix("attention ")
        if section.reconstruction is not None:
            spec = section.reconstruction
            yield "  rounding", f"learned per {spec.unit} in {spec.iterations} iterations"
        if section.mixed_precision is not None:
            mixed = section.mixed_precision
            budget = "no budget of its own" if mixed.average_bits is None else f"{mixed.average_bits:g} bits per weight"
            yield "  mixed", f"{' | '.join(mixed.choices)} under {budget}, ranked by {mixed.metric}"
    yield "exact on", ", ".join(legal_targets(recipe)) or "no target: build with --allow-degrade"


def legal_targets(recipe: Recipe) -> list[str]:
    """The targets that can do exactly what every section says."""
    wanted = [t for section in recipe.sections.values() for t in treatments(section)]
    attentions = [section.attention for section in recipe.sections.values() if section.attention is not None]

    def legal(target: Target) -> bool:
        own = target.default_precision
        return all(exact(target, t) for t in wanted) and all(exact_attention(target, a, own) for a in attentions)

    return [target.id for target in all_targets() if target.buildable and legal(target)]
