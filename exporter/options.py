"""The options of a build: one frozen value, from flags, a YAML file or Python alike; saved in the bundle as its configuration."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dexport.errors import UserError

Size = tuple[int, int]
_QUANTIZING = ("parts", "skip", "statistics", "calibration", "budget_bytes", "average_bits", "budget_ms")
_NOT_WITH_MODELOPT = ("recipe", "budget_bytes", "average_bits", "budget_ms", "loras")
_CALIBRATING = ("statistics", "calibration")
BUDGETS = ("budget_bytes", "average_bits", "budget_ms")
_GUARDING = ("allow_degrade", "repair", "min_psnr", "min_score")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What to build.

    Attributes:
        model: a diffusers pipeline directory or a hub id.
        target: a target id, such as "cpu", "rtx-4090" or "jetson-orin@jetpack-6.2".
        precision: "fp32", "fp16" or "bf16"; None takes the target's default.
        sizes: (height, width) in pixels; empty takes the pipeline's default.
        steps: numbers of sampling steps, one program each; empty takes the pipeline's default.
        scheduler: a diffusers scheduler class by name; None takes the pipeline's own.
        guidance: default guidance scale; None takes the pipeline's default.
        guidance_interval: first and last fraction of the steps between which guidance is on.
        guidance_batching: run the unconditional and the conditional rows in one call, or in turn with half the activation memory.
        batch: most pictures made in one run.
        kit: leave building the engines to `dexport finalize` on the device; Jetson targets always do.
        frames: frames of a video; None takes the pipeline's default.
        loras: LoRA files merged into the weights, as "FILE" or "FILE:SCALE".
        golden: "auto" adds golden inputs and outputs where the model fits into memory, "none" leaves them out.
        recipe: how to quantize: a name of `dexport recipes` or a YAML file; None leaves everything in `precision`.
        modelopt: instead of a recipe, what NVIDIA ModelOpt found for the denoiser: the file of `modelopt.torch.opt.save`, or the directory
            of `export_hf_checkpoint`. `model` is the pipeline that it was quantized from. Nothing is calibrated.
        parts: section of a recipe ("denoiser", "prelude", "text_encoder", "vae") -> another recipe for it, or "keep".
        skip: names or `re:` patterns of layers that are not quantized, in any section.
        statistics: a file of `dexport calibrate`; None calibrates while building, if the recipe needs it.
        calibration: a file with one prompt per line to calibrate with; None takes a built-in list.
        calibration_size: how many of its prompts.
        budget_bytes: most bytes that the denoiser's quantized weights may take, for recipes with mixed precision.
        average_bits: the same as bits per weight, scales counted.
        budget_ms: instead, most milliseconds of one step of the denoiser, as estimated for the target.
        allow_degrade: build what the target can do where it cannot do exactly what the recipe says, and list it.
        repair: keep the fewest layers in `precision` that make broken or bad pictures good, instead of failing.
        min_psnr: fail if the median PSNR against the unquantized model is below, in dB.
        min_score: fail if the mean score of the pictures is below.
        scorer: "FILE.py:FUNCTION", called with (prompt, picture), for `min_score` and the report.
        quality_prompts: how many calibration prompts measure the quality; 0 measures nothing.
    """

    model: str
    target: str
    precision: str | None = None
    sizes: tuple[Size, ...] = ()
    steps: tuple[int, ...] = ()
    scheduler: str | None = None
    guidance: float | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_batching: bool = True
    batch: int = 1
    kit: bool = False
    frames: int | None = None
    loras: tuple[str, ...] = ()
    golden: str = "auto"
    recipe: str | None = None
    modelopt: str | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    skip: tuple[str, ...] = ()
    statistics: str | None = None
    calibration: str | None = None
    calibration_size: int = 32
    budget_bytes: int | None = None
    average_bits: float | None = None
    budget_ms: float | None = None
    allow_degrade: bool = False
    repair: bool = False
    min_psnr: float | None = None
    min_score: float | None = None
    scorer: str | None = None
    quality_prompts: int = 8

    def __post_init__(self) -> None:
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise UserError(
                "guidance_interval",
                expected="two fractions with 0 <= first <= last <= 1",
                got=f"{low}, {high}",
                fix="give 0,1 for all steps",
            )
        if self.golden not in ("auto", "none"):
            raise UserError("golden", expected="auto or none", got=self.golden, fix="choose one of them")
        if self.batch < 1:
            raise UserError("batch", expected="at least 1", got=str(self.batch), fix="give the most pictures of one run")
        if any(s < 1 for s in self.steps):
            raise UserError("steps", expected="positive numbers", got=str(list(self.steps)), fix="give for example 20")
        self._check_quantization()

    def _check_quantization(self) -> None:
        if self.calibration_size < 1:
            raise UserError("calibration_size", expected="at least 1", got=str(self.calibration_size), fix="32 is usual")
        budgets = [f"--{name.replace('_', '-')}" for name in BUDGETS if getattr(self, name) is not None]
        if len(budgets) > 1:
            expected = "one of --budget-bytes, --average-bits and --budget-ms"
            raise UserError("budget", expected=expected, got=" and ".join(budgets), fix="give one of them")
        if self.min_score is not None and self.scorer is None:
            raise UserError("min_score", expected="a scorer", got="none", fix="name one with --scorer FILE.py:FUNCTION")
        if self.modelopt is not None:
            self._check_modelopt()
        elif self.recipe is None:
            asked = [name for name in (*_QUANTIZING, *_GUARDING) if getattr(self, name)]
            if asked:
                raise UserError(asked[0].replace("_", "-"), expected="a recipe that it applies to", got="none", fix="add --recipe NAME")

    def _check_modelopt(self) -> None:
        """What says the same as the checkpoint, or needs statistics, which it has no use for."""
        other = [name for name in _NOT_WITH_MODELOPT if getattr(self, name)]
        if not self.parts:  # another recipe for the text encoder may need them
            other += [name for name in _CALIBRATING if getattr(self, name)]
        for name in other:
            flag = f"--{'lora' if name == 'loras' else name.replace('_', '-')}"
            fix = "merge it before you quantize with ModelOpt" if name == "loras" else "drop one of them"
            raise UserError(flag, expected="no --modelopt, whose checkpoint decides how the denoiser is quantized", got="both", fix=fix)
        for name, recipe in self.parts.items():
            if name == "denoiser" or (name == "prelude" and recipe != "keep"):
                fix = "name text_encoder or vae, or say prelude=keep"
                raise UserError(f"--component {name}={recipe}", expected="a part that the checkpoint leaves alone", got=name, fix=fix)

    def to_config(self) -> dict[str, Any]:
        """The options as plain JSON, as `options_from` reads them."""
        return dataclasses.asdict(self) | {"sizes": [f"{h}x{w}" for h, w in self.sizes], "guidance_interval": list(self.guidance_interval)}


def parse_size(text: str) -> Size:
    """Reads "HxW".

    Raises:
        UserError: it is not two positive numbers.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if match is None or 0 in (int(match[1]), int(match[2])):
        raise UserError("size", expected="HEIGHTxWIDTH in pixels, such as 512x768", got=repr(text), fix="write it that way")
    return int(match[1]), int(match[2])


def options_from(values: Mapping[str, Any], where: str) -> BuildOptions:
    """Options from a mapping (a YAML file, --set); `where` names its origin in errors.

    Raises:
        UserError: an unknown key, with the nearest known ones, or a value of the wrong type.
    """
    known = {field.name for field in dataclasses.fields(BuildOptions)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 3) or sorted(known)
            raise UserError(where, expected=f"one of the options {', '.join(near)}", got=repr(key), fix="correct the key")
    missing = {"model", "target"} - set(values)
    if missing:
        raise UserError(where, expected=f"the option {sorted(missing)[0]}", got="none", fix="give it")
    return BuildOptions(**{key: _converted(key, value, where) for key, value in values.items()})


def _converted(key: str, value: Any, where: str) -> Any:
    try:
        if value is None:
            return None
        match key:
            case "sizes":
                return tuple(parse_size(str(v)) for v in _list(value))
            case "steps":
                return tuple(int(v) for v in _list(value))
            case "loras" | "skip":
                return tuple(str(v) for v in _list(value))
            case "parts":
                return (
                    dict(_part(v) for v in _list(value)) if not isinstance(value, Mapping) else {str(k): str(v) for k, v in value.items()}
                )
            case "guidance_interval":
                low, high = (float(v) for v in _list(value))
                return low, high
            case "guidance_batching" | "kit" | "allow_degrade" | "repair":
                return value if isinstance(value, bool) else {"true": True, "on": True, "false": False, "off": False}[str(value).lower()]
            case "batch" | "frames" | "calibration_size" | "budget_bytes" | "quality_prompts":
                return int(value)
            case "guidance" | "average_bits" | "budget_ms" | "min_psnr" | "min_score":
                return float(value)
            case _:
                return str(value)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{where}: {key}", expected="a value of its kind (see `dexport build --help`)", got=repr(value), fix="correct it"
        ) from error


def _list(value: Any) -> list[Any]:
    return value.split(",") if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [value]


def _part(text: Any) -> tuple[str, str]:
    """Reads "SECTION=RECIPE"."""
    section, equals, recipe = str(text).partition("=")
    if not equals or not section or not recipe:
        raise ValueError(text)
    return section, recipe
