"""The recipe of a build: what the user named, with parts exchanged, defaults added, and what the target cannot do refused or degraded.

A checkpoint of ModelOpt stands for a recipe whose every layer is treated as the checkpoint says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dexport.errors import UserError
from dexport.exporter.attention_forms import describe_attention, exact_attention
from dexport.exporter.modelopt_checkpoint import PARTS, ModeloptCheckpoint, open_modelopt
from dexport.exporter.options import BUDGETS, BuildOptions
from dexport.exporter.quantized_forms import exact, nearest
from dexport.passes.quantization.recipe import SECTIONS, Recipe, Section, Treatment, WeightSpec
from dexport.passes.quantization.recipe_file import find_recipe
from dexport.targets.formats import Support
from dexport.targets.target import Target

SMALL_MEMORY_GIB = 16
_INT4_OPSET = 21  # ONNX has INT4 from here on


@dataclass(frozen=True)
class Degraded:
    """A treatment that the target cannot do exactly, and what stands for it."""

    section: str
    asked: str
    built: str
    reason: str


@dataclass(frozen=True)
class EffectiveRecipe:
    """What will be done, and what was changed for the target.

    Attributes:
        checkpoint: of ModelOpt, whose layers take the place of those of the sections in `PARTS`.
    """

    recipe: Recipe
    degraded: tuple[Degraded, ...]
    checkpoint: ModeloptCheckpoint | None = None

    def sections(self) -> dict[str, str]:
        """What happens to every part, in words."""
        words = {name: describe_section(section) for name, section in self.recipe.sections.items()}
        if self.checkpoint is not None:
            kinds = Counter(describe(layer.treatment) for layer in self.checkpoint.layers.values())
            words["denoiser"] = " | ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
            words |= {"prelude": "as the denoiser"} if "prelude" in words else {}
        return words

    def lines(self) -> list[str]:
        """The recipe in words, for --dry-run."""
        sections = [f"{name}: {words}" for name, words in self.sections().items()]
        degraded = [f"degraded   {d.section}: {d.asked} to {d.built} ({d.reason})" for d in self.degraded]
        return [f"recipe     {self.recipe.name}; {'; '.join(sections)}", *degraded]


def effective_recipe(options: BuildOptions, target: Target) -> EffectiveRecipe | None:
    """The recipe of a build, None without one.

    Raises:
        UserError: an unknown recipe or section, one that the target cannot do exactly (unless `allow_degrade`), no checkpoint, or a budget
            for a recipe that leaves nothing to choose.
    """
    checkpoint = None
    if options.modelopt is not None:
        checkpoint = open_modelopt(options.modelopt)
        recipe = _checkpoint_recipe(checkpoint)
    elif options.recipe is not None:
        recipe = find_recipe(options.recipe)
    else:
        return None
    sections: dict[str, Section | None] = dict(recipe.sections)
    small = target.memory_gib is not None and target.memory_gib <= SMALL_MEMORY_GIB
    if small and "text_encoder" not in sections:
        sections["text_encoder"] = _small_text_encoder(target)
    for name, other in options.parts.items():
        sections[_checked(name)] = _part(name, other)
    degraded: list[Degraded] = []

    def legal(name: str, section: Section) -> Section:
        if (spec := section.attention) is not None:
            answer = exact_attention(target, spec, options.precision or target.default_precision)
            if not answer:
                degraded.append(_degraded(target, name, (describe_attention(spec), "attention in 16 bits"), answer, options.allow_degrade))
                section = replace(section, attention=None)
        return _changed(section, lambda t: None if t is None else _legal(target, name, t, options.allow_degrade, degraded))

    kept = {name: legal(name, section) for name, section in sections.items() if section is not None}
    _check_budget(options, recipe.name, kept.get("denoiser"))
    if checkpoint is not None:
        allow = options.allow_degrade
        checkpoint = checkpoint.treated(lambda a: _legal(target, "denoiser", a.treatment, allow, degraded, convolution=a.convolution))
    return EffectiveRecipe(replace(recipe, sections=kept), tuple(dict.fromkeys(degraded)), checkpoint)


def _check_budget(options: BuildOptions, recipe: str, denoiser: Section | None) -> None:
    """A budget needs somebody who chooses."""
    given = [name for name in BUDGETS if getattr(options, name) is not None]
    if given and (denoiser is None or denoiser.mixed_precision is None):
        flag = f"--{given[0].replace('_', '-')}"
        fix = "use vidit-q-mp, or give your recipe mixed_precision: choices"
        raise UserError(flag, expected="a recipe with mixed precision", got=f"{recipe}, whose layers are all decided", fix=fix)


def _checkpoint_recipe(checkpoint: ModeloptCheckpoint) -> Recipe:
    """Sections that keep every layer, for the checkpoint's to stand over."""
    summary = f"{len(checkpoint.layers)} layers of the denoiser as NVIDIA ModelOpt quantized them, from {checkpoint.path}."
    return Recipe(name="modelopt", summary=summary, sections={name: Section() for name in PARTS})


def _checked(name: str) -> str:
    if name not in SECTIONS:
        raise UserError(f"--component {name}", expected=" or ".join(SECTIONS), got=repr(name), fix="name a part of the pipeline")
    return name


def _part(name: str, other: str) -> Section | None:
    """The section that another recipe has for a part; one that speaks of the denoiser only lends that. "keep" is None."""
    if other == "keep":
        return None
    recipe = find_recipe(other)
    section = recipe.section(name) or recipe.section("denoiser")
    if section is None:
        fix = "name another recipe"
        raise UserError(f"--component {name}={other}", expected=f"a recipe with a section {name} or denoiser", got="neither", fix=fix)
    return section if recipe.section(name) else replace(section, ends="default", layers={}, attention=None, mixed_precision=None)


def _small_text_encoder(target: Target) -> Section:
    """Weights only: encoders run once per prompt, so their bytes matter and their speed does not."""
    if target.supports("int4-weights") and target.onnx_opset >= _INT4_OPSET:
        return Section(default=Treatment(weights=WeightSpec(format="int4", granularity="block-128", range="mse")))
    return Section(default=Treatment(weights=WeightSpec(format="int8")))


def _changed(section: Section, change: Callable[[Treatment | None], Treatment | None]) -> Section:
    mixed = section.mixed_precision
    if mixed is not None:
        choices = {name: found for name, choice in mixed.choices.items() if (found := change(choice)) is not None}
        mixed = replace(mixed, choices=choices)
    return replace(
        section,
        default=change(section.default),
        layers={name: change(treatment) for name, treatment in section.layers.items()},
        ends=section.ends if section.ends == "default" else change(section.ends),
        mixed_precision=mixed,
    )


def _legal(
    target: Target, section: str, treatment: Treatment, allow: bool, degraded: list[Degraded], *, convolution: bool = False
) -> Treatment:
    answer = exact(target, treatment, convolution=convolution)
    if answer:
        return treatment
    other = nearest(target, treatment, convolution=convolution)
    degraded.append(_degraded(target, section, (describe(treatment), describe(other)), answer, allow))
    return other


def _degraded(target: Target, section: str, change: tuple[str, str], answer: Support, allow: bool) -> Degraded:
    """What is changed, if that is allowed."""
    asked, built = change
    if not allow:
        expected = f"a form that {target.backend} computes exactly"
        fix = f"add --allow-degrade to build {built} instead, or choose another recipe"
        raise UserError(f"{target.id}: {section}", expected=expected, got=f"{asked} ({answer.reason})", fix=fix)
    return Degraded(section, asked, built, answer.reason)


def describe_section(section: Section) -> str:
    """What happens to most layers, and to attention."""
    words = [describe(section.default)]
    return "; ".join([*words, describe_attention(section.attention)] if section.attention is not None else words)


def describe(treatment: Treatment | None) -> str:
    """A treatment in a few words: "int4 block-64 weights, int8 dynamic activations, rotated"."""
    if treatment is None or treatment.weights is None:
        return "16 bits"
    weights, activations = treatment.weights, treatment.activations
    words = [f"{weights.format} {weights.granularity} weights"]
    if activations is not None:
        words.append(f"{activations.format} {activations.mode} {activations.granularity} activations")
    extras: Mapping[str, object] = {
        "balanced": treatment.balance,
        "rotated": treatment.rotate,
        "with a low-rank branch": treatment.low_rank,
    }
    return ", ".join([*words, *(word for word, present in extras.items() if present)])
