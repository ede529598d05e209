"""`dexport compare`: the same prompts and the same noise through two sides, and what became of the pictures."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata, resources
from typing import Any

from dexport.errors import UserError
from dexport.exporter.options import Size
from dexport.exporter.quality import quality_of
from dexport.exporter.report.data import ByteChange, ReportData, pairs_of
from dexport.exporter.scorer import Scorer, scores
from dexport.exporter.sides import Abilities, BundleSide, Conditions, Setting, Side
from dexport.exporter.torch_pipeline import Run
from dexport.runtime.manifest import Component

Report = Callable[[str, float | None], None]

_CLASSES = 16  # of our own choice, where nothing else is asked for
_PACKAGES = ("dexport", "torch", "diffusers", "openvino", "onnxruntime", "tensorrt-rtx", "scikit-image")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to compare on; None leaves it to the sides.

    Attributes:
        prompts: texts, or class labels as numbers; None takes captions, or evenly spaced classes, of ours.
        seeds: pictures per prompt. Picture i of all starts from the noise of seed i.
        scorer: with the name to show for it.
    """

    prompts: Sequence[str] | None = None
    seeds: int = 1
    steps: int | None = None
    size: Size | None = None
    guidance: float | None = None
    scorer: tuple[str, Scorer] | None = None


def compare(reference: Side, candidate: Side, asked: Asked, command: str, report: Report = lambda stage, done: None) -> ReportData:
    """Runs both sides and measures.

    Args:
        reference, candidate: opened by `open_side`.
        command: what the user typed, for the report.

    Raises:
        UserError: the sides cannot be asked for the same thing, or the prompts do not fit the model.
        Failure: a side broke, or made NaN.
    """
    setting = agreed(reference.abilities, candidate.abilities, asked)
    conditions = conditions_for(reference.abilities, asked)
    seeds = list(range(len(conditions)))
    made = []
    for index, side in enumerate((reference, candidate)):
        stage = f"{len(conditions)} pictures of {side.name}"
        report(stage, index / 2)
        made.append(side.make(conditions, seeds, setting, _part_of(report, stage, index)))
    report("measure", 1.0)
    prompts = [str(condition) for condition in conditions]
    before, after = made[0].run, made[1].run
    shown = [f"class {prompt}" for prompt in prompts] if reference.abilities.classes is not None else prompts
    pairs = pairs_of(shown, seeds, before.pictures, after.pictures)
    rated = _scores(asked.scorer, prompts, before, after)
    return ReportData(
        title=f"Quality of {candidate.name}",
        reference=reference.name,
        candidate=candidate.name,
        created=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        notes=_notes(reference, candidate),
        quality=quality_of([p.psnr for p in pairs], [p.ssim for p in pairs], _latents(before, after), rated),
        pairs=pairs,
        weight_bytes=_bytes(made[0].weight_bytes, made[1].weight_bytes),
        kernels=kernels_of(candidate.manifest.components) if isinstance(candidate, BundleSide) else {},
        command=command,
        settings=_settings(setting, asked, len(conditions)),
        versions=versions(),
    )


def agreed(a: Abilities, b: Abilities, asked: Asked) -> Setting:
    """What both can do: the defaults of the reference (a) where the candidate (b) has them too, else what they have in common.

    Raises:
        UserError: nothing in common, or not what was asked for; prompts on one side and classes on the other; videos of other lengths.
    """
    if (a.classes is None) != (b.classes is None):
        kinds = ["prompts" if side.classes is None else "class labels" for side in (a, b)]
        raise _different("kind of prompts", *kinds)
    own = a.setting if a.fixed or not b.fixed else b.setting
    if a.fixed and b.fixed and a.setting.frames != b.setting.frames:
        raise _different("frames", str(a.setting.frames), str(b.setting.frames))
    return replace(
        own,
        size=_common("size", a, b, "sizes", asked.size),
        steps=_common("steps", a, b, "steps", asked.steps),
        guidance=own.guidance if asked.guidance is None else asked.guidance,
    )


def conditions_for(abilities: Abilities, asked: Asked) -> Conditions:
    """One condition per picture.

    Raises:
        UserError: a line is no class label.
    """
    if abilities.classes is None:
        prompts = asked.prompts if asked.prompts is not None else captions()
        return [prompt for prompt in prompts for _ in range(asked.seeds)]
    classes = abilities.classes
    count = min(_CLASSES, classes)
    labels = [i * classes // count for i in range(count)] if asked.prompts is None else [_label(text, classes) for text in asked.prompts]
    return [label for label in labels for _ in range(asked.seeds)]


def captions() -> tuple[str, ...]:
    """Ordinary captions for models that draw anything; a model with a narrow world needs its own."""
    return tuple(json.loads(resources.files("dexport.exporter").joinpath("captions.json").read_text(encoding="utf-8")))


def kernels_of(components: Mapping[str, Component]) -> dict[str, dict[str, int]]:
    """Component -> kind of kernel -> how many, as the compiler of its engine chose them; without those of which that is not known."""
    found = {name: kernel_counts(component.variants[0].kernels or {}) for name, component in components.items()}
    return {name: counts for name, counts in found.items() if counts}


def kernel_counts(kernels: Mapping[str, Any]) -> dict[str, int]:
    """The first program of `KernelSummary.to_dict`, flat: "GEMM int8" -> how many. Anything else gives nothing."""
    programs = kernels.get("programs")
    first = programs[0] if isinstance(programs, list) and programs else {}
    if not isinstance(first, Mapping):
        return {}
    counts = {
        f"{kind} {precision}": count
        for kind, key in (("GEMM", "gemms"), ("fused attention", "attentions"), ("convolution", "convolutions"))
        if isinstance(first.get(key), Mapping)
        for precision, count in first[key].items()
    }
    counts |= {name: first[key] for name, key in (("moves and conversions", "conversions"), ("other", "others")) if key in first}
    if unfused := first.get("unfused_attention"):
        counts["attention that is not fused"] = len(unfused)
    return {name: count for name, count in counts.items() if isinstance(count, int) and count}


def versions() -> dict[str, str]:
    """The installed packages that decide what a picture looks like."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _common(what: str, a: Abilities, b: Abilities, field: str, wanted: Any) -> Any:
    """The wanted value, or the first of the reference's that the candidate has too."""
    first, second = getattr(a, field), getattr(b, field)
    if not a.fixed and not b.fixed:
        return first[0] if wanted is None else wanted
    offered = [v for v in first if v in second] if a.fixed and b.fixed else list(first if a.fixed else second)
    if not offered:
        raise _different(what, _shown(first), _shown(second))
    if wanted is not None and wanted not in offered:
        fix = f"ask for one of them, or rebuild with --{what} {_shown([wanted])}"
        raise UserError(f"--{what}", expected=f"one of {_shown(offered)}, which both sides have", got=_shown([wanted]), fix=fix)
    return offered[0] if wanted is None else wanted


def _shown(values: Sequence[Any]) -> str:
    return ", ".join(f"{v[0]}x{v[1]}" if isinstance(v, tuple) else str(v) for v in values)


def _different(what: str, first: str, second: str) -> UserError:
    fix = "compare bundles of the same model and rebuild one like the other"
    return UserError("compare", expected=f"two sides with the same {what}", got=f"{first} and {second}", fix=fix)


def _label(text: str, classes: int) -> int:
    if not text.isdecimal() or int(text) >= classes:
        expected = f"class labels from 0 to {classes - 1}, as this model takes no text"
        raise UserError("--prompts", expected=expected, got=repr(text), fix="write one number per line")
    return int(text)


def _latents(before: Run, after: Run) -> tuple[Any, Any] | None:
    """Of both, if they are of the same kind: another scheduler may call the model more often."""
    return (before.latents, after.latents) if before.latents.shape == after.latents.shape else None


def _scores(scorer: tuple[str, Scorer] | None, prompts: Sequence[str], before: Run, after: Run) -> tuple[Any, Any] | None:
    if scorer is None:
        return None
    return scores(scorer[1], prompts, before.pictures), scores(scorer[1], prompts, after.pictures)


def _part_of(report: Report, stage: str, index: int) -> Callable[[float], None]:
    return lambda done: report(stage, (index + done) / 2)


def _bytes(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, ByteChange]:
    return {name: ByteChange(before.get(name, 0), after.get(name, 0)) for name in dict.fromkeys([*before, *after])}


def _notes(reference: Side, candidate: Side) -> tuple[str, ...]:
    a, b = reference.abilities, candidate.abilities
    if a.fixed and b.fixed and a.setting.scheduler != b.setting.scheduler:
        return (
            f"The sides sample with different schedulers, {a.setting.scheduler} and {b.setting.scheduler}: pictures differ for that too.",
        )
    return ()


def _settings(setting: Setting, asked: Asked, pictures: int) -> dict[str, Any]:
    return {
        "pictures": pictures,
        "seeds": f"0 to {pictures - 1}, one per picture" if pictures > 1 else "0",
        "prompts": "dexport's own" if asked.prompts is None else f"{len(asked.prompts)} given",
        "size": f"{setting.size[0]}x{setting.size[1]}",
        "steps": setting.steps,
        "guidance": setting.guidance,
        **({"scheduler": setting.scheduler} if setting.scheduler else {}),
        **({"scorer": asked.scorer[0]} if asked.scorer else {}),
    }
