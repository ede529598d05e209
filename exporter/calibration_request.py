"""What to calibrate with: prompts or class labels, one per picture, and how samples are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dexport.errors import UserError
from dexport.exporter.plan import Plan
from dexport.passes.quantization.samplers import GENERIC_PROMPTS, Sampler

Conditions = tuple[str, ...] | tuple[int, ...]

SAMPLES = 256
_CLASSES = 32  # of our own choice, where nothing else is asked for


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """What to calibrate with.

    Attributes:
        conditions: prompts or class labels, one per picture (see `calibration_conditions`).
        seed: of the first picture's noise; the others count on. Also of every choice.
        guidance: scale; None takes the plan's.
        samples: most inputs that are kept for reconstruction; fewer where they would take more than 256 MiB.
    """

    conditions: Conditions
    seed: int = 0
    guidance: float | None = None
    sampler: Sampler = field(default_factory=Sampler)
    samples: int = SAMPLES


def named_sampler(name: str) -> Sampler:
    """The sampler of a name, with the parameters of its paper.

    Raises:
        UserError: there is none of that name.
    """
    return Sampler(name)


def calibration_conditions(decided: Plan, prompts: Sequence[str] | None, pictures: int | None) -> Conditions:
    """One condition per picture: the prompts, cut, or repeated from the beginning (with another seed each), to the number of pictures.

    Args:
        prompts: texts, or for a pipeline without text its class labels as numbers. None takes prompts, or evenly spaced classes, of ours.
        pictures: how many; None as many as there are prompts.

    Raises:
        UserError: a line is no class label.
    """
    classes = next((int(r.negative) for r in decided.pipeline.requests if r.source == "class"), None)
    given: Conditions
    if classes is not None:
        count = pictures or min(classes, _CLASSES)
        given = tuple(i * classes // count for i in range(count)) if prompts is None else tuple(_label(text, classes) for text in prompts)
    else:
        given = GENERIC_PROMPTS if prompts is None else tuple(prompts)
    if not given or (pictures is not None and pictures < 1):
        raise UserError("calibration", expected="at least one picture", got="none", fix="give prompts")
    count = pictures or len(given)
    return tuple(given[i % len(given)] for i in range(count))  # type: ignore[return-value]  # all of one kind


def _label(text: str, classes: int) -> int:
    if not text.isdecimal() or int(text) >= classes:
        fix = "write one number per line"
        raise UserError("prompts", expected=f"class labels from 0 to {classes - 1}, as this model takes no text", got=repr(text), fix=fix)
    return int(text)
