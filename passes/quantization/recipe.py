"""Recipes: what to do to which layer, as frozen data read from YAML.

A recipe is values over orthogonal primitives, never code. It has a section per part of the pipeline:

    denoiser       the loop
    prelude        what hoisting moved out of the loop and runs once per prompt
    text_encoder   every text encoder
    vae            the decoder

A section maps layer names to treatments, in order of precedence: exact name, then `re:` patterns in the order written (matched anywhere in the
name), then `default`. "keep" leaves a layer as it is. A pattern or name that matches nothing is an error when the recipe is applied.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from dexport.errors import UserError
from dexport.plugins.activations import MODES
from dexport.plugins.formats import format_of

SECTIONS = ("denoiser", "prelude", "text_encoder", "vae")
MICRO_FORMATS = {"nvfp4": ("e2m1", 16), "mxfp4": ("e2m1", 32)}
"""Formats with two levels of scales: the format of the codes and the size of a block."""

_GRANULARITY = re.compile(r"tensor|channel|block-(\d+)")
_ACTIVATION_GRANULARITY = re.compile(r"tensor|token|block-(\d+)|channel-groups-(\d+)|token-groups-(\d+)|groups-(\d+)")
_RANGE = re.compile(r"minmax|mse|percentile-(\d+(\.\d+)?)|ema|float-search")
_ROUNDING = ("nearest", "gptq", "adaround")
_BALANCE = ("smoothquant", "vidit-q", "search")


@dataclass(frozen=True, kw_only=True)
class WeightSpec:
    """How a weight is quantized.

    Attributes:
        format: "int8" ... "int2", "eXmY", "nvfp4", "mxfp4"; several separated by "|" let the range search choose.
        granularity: "tensor", "channel" (of the output) or "block-N" along the inputs.
        range: "minmax", "mse" (Lp norm, p = 2.4), "percentile-99.9" or "float-search" (format and largest value by least squares).
        rounding: "nearest", "gptq" or "adaround".
    """

    format: str
    granularity: str = "channel"
    range: str = "minmax"
    rounding: str = "nearest"

    @property
    def block(self) -> int:
        """Inputs that share a scale; 0 for whole rows."""
        if self.format in MICRO_FORMATS:
            return MICRO_FORMATS[self.format][1]
        match = _GRANULARITY.fullmatch(self.granularity)
        return int(match[1]) if match and match[1] else 0


@dataclass(frozen=True, kw_only=True)
class ActivationSpec:
    """How activations are quantized.

    Attributes:
        format: as of weights.
        mode: "static", "table" (a scale per step), "dynamic" or "dynamic-centred" (from each token itself).
        granularity: "tensor" or "token" (dynamic: always per token), "block-N" along the channels (dynamic only), "channel-groups-K" or
            "token-groups-K" (K-means over the calibrated ranges), or "groups-K" (whichever of the two spreads more).
        range: "minmax", "mse", "percentile-P" or "ema"; of static and table.
        centred: subtract the middle of the range first (static and table).
    """

    format: str
    mode: str = "static"
    granularity: str = "tensor"
    range: str = "minmax"
    centred: bool = False

    @property
    def block(self) -> int:
        """Channels that share a dynamic scale; 0 for whole rows."""
        if self.format in MICRO_FORMATS:
            return MICRO_FORMATS[self.format][1]
        match = _ACTIVATION_GRANULARITY.fullmatch(self.granularity)
        return int(match[1]) if match and match[1] else 0

    @property
    def calibrated(self) -> bool:
        """Whether statistics are needed."""
        return self.mode in ("static", "table") or self.format == "nvfp4"


@dataclass(frozen=True, kw_only=True)
class BalanceSpec:
    """Channel balancing: x * m, W / m.

    Attributes:
        method: "smoothquant" m = max|W|^(1-alpha) / max|X|^alpha; "vidit-q" m = max|W|^alpha / max|X|^(1-alpha); "search" tries the
            candidates of SVDQuant and keeps the one with the least output error.
        alpha: the exponent; unused by "search".
        ranges: fractions of the schedule that end a range, such as [0.5, 1]; one set of weights each.
    """

    method: str
    alpha: float = 0.5
    ranges: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, kw_only=True)
class LowRankSpec:
    """A 16-bit branch of `rank` beside the quantized weight; `iterations` of SVDQuant's alternation, 1 for a single SVD."""

    rank: int
    iterations: int = 1


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """Everything that is done to one layer; parts that are None are not done.

    Attributes:
        rotate: an orthogonal transform of the channels: "hadamard".
        bypass_tokens: leading tokens that are not quantized; "auto" finds outlier tokens in the statistics.
        split_concat: quantize the pieces of a concatenated input apart.
    """

    weights: WeightSpec | None = None
    activations: ActivationSpec | None = None
    balance: BalanceSpec | None = None
    rotate: str | None = None
    low_rank: LowRankSpec | None = None
    bypass_tokens: int | str = 0
    split_concat: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether statistics are needed."""
        activations = self.activations is not None and self.activations.calibrated
        rounded = self.weights is not None and self.weights.rounding != "nearest"
        return activations or rounded or self.balance is not None or self.bypass_tokens == "auto"


@dataclass(frozen=True, kw_only=True)
class ReconstructionSpec:
    """Learned rounding and scales (BRECQ, arXiv 2102.05426): which unit is fitted, on what, for how long.

    Attributes:
        unit: "layer" or "block".
        inner: weight of the outputs of the layers inside a block in the loss (EDA-DM's fine-grained reconstruction).
        drop: probability that an activation stays unquantized while fitting (QDrop).
        activations: also learn activation scales (LSQ).
        scale_aware: divide by the step of each number (FP4DiT).
    """

    unit: str = "block"
    iterations: int = 500
    batch: int = 32
    learning_rate: float = 1e-2
    rounding_weight: float = 0.01
    inner: float = 0.0
    drop: float = 0.0
    activations: bool = False
    scale_aware: bool = False


@dataclass(frozen=True, kw_only=True)
class MixedPrecisionSpec:
    """Which layers get more bits.

    Attributes:
        choices: treatments by name that the allocator may give a layer, over the section's own.
        metric: "sqnr", "output" or "end-to-end".
        average_bits: budget over the weights of the section; flags of `dexport build` override it.
        groups: group name -> pattern; each is ranked by its own metric (metric-decoupled allocation).
    """

    choices: Mapping[str, Treatment]
    metric: str = "output"
    average_bits: float | None = None
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Section:
    """How one part of the pipeline is treated; `layers` keeps the order of the file, None stands for "keep"."""

    default: Treatment | None = None
    layers: Mapping[str, Treatment | None] = field(default_factory=dict)
    reconstruction: ReconstructionSpec | None = None
    mixed_precision: MixedPrecisionSpec | None = None

    def treatments(self, names: Iterable[str], where: str) -> dict[str, Treatment | None]:
        """The treatment of every layer.

        Raises:
            UserError: a name or pattern matches none of them.
        """
        listed = list(names)
        unused = {key for key in self.layers if not any(_matches(key, name) for name in listed)}
        if unused:
            key = sorted(unused)[0]
            near = difflib.get_close_matches(key.removeprefix("re:"), listed, 3, cutoff=0.3) or listed[:3]
            raise UserError(
                f"{where}: {key}", expected="a layer that it matches", got="none", fix=f"layers are named like {', '.join(near)}"
            )
        return {name: self._treatment(name) for name in listed}

    def _treatment(self, name: str) -> Treatment | None:
        if name in self.layers:
            return self.layers[name]
        found = next((key for key in self.layers if _matches(key, name)), None)
        return self.default if found is None else self.layers[found]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named set of sections, with where it comes from."""

    name: str
    summary: str
    paper: str = ""
    sections: Mapping[str, Section] = field(default_factory=dict)

    def section(self, name: str) -> Section | None:
        """The section of a part, None if the recipe leaves the part alone."""
        return self.sections.get(name)

    @property
    def calibrated(self) -> bool:
        """Whether statistics are needed."""
        return any(
            section.reconstruction is not None or section.mixed_precision is not None or any(t is not None and t.calibrated for t in every)
            for section in self.sections.values()
            for every in [(section.default, *section.layers.values())]
        )


def _matches(key: str, name: str) -> bool:
    return bool(re.search(key[3:], name)) if key.startswith("re:") else key == name


def recipe_names() -> list[str]:
    """The recipes that come with dexport."""
    folder = resources.files(__package__) / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def find_recipe(name: str) -> Recipe:
    """The recipe of a name, or of a YAML file if `name` ends in .yaml or .yml.

    Raises:
        UserError: unknown (with the nearest names) or malformed (with the offending key).
    """
    if name.endswith((".yaml", ".yml")):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            got = getattr(error, "strerror", None) or "not UTF-8"
            raise UserError(name, expected="a recipe file", got=got, fix="check the path") from error
        return read_recipe(text, name)
    known = recipe_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, cutoff=0.4)
        fix = f"did you mean {' or '.join(near)}?" if near else "`dexport recipes` lists all"
        raise UserError(f"recipe {name}", expected="a known recipe or a .yaml file", got=repr(name), fix=fix)
    return read_recipe((resources.files(__package__) / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"), f"recipe {name}")


def read_recipe(text: str, where: str) -> Recipe:
    """A recipe from YAML.

    Raises:
        UserError: malformed; names the key, and the keys that would be right.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(where, expected="YAML", got=" ".join(str(error).split()), fix="correct the file") from error
    if not isinstance(document, dict):
        raise UserError(
            where, expected="a mapping with name, summary and sections", got=type(document).__name__, fix="see `dexport recipes int8`"
        )
    _check_keys(document, {"name", "summary", "paper", *SECTIONS}, {"name", "summary"}, where)
    sections = {key: _section(document[key], f"{where}: {key}") for key in SECTIONS if key in document}
    return Recipe(name=str(document["name"]), summary=str(document["summary"]), paper=str(document.get("paper", "")), sections=sections)


def _section(document: Any, where: str) -> Section:
    _check_keys(document, {"default", "layers", "reconstruction", "mixed_precision"}, set(), where)
    layers = document.get("layers") or {}
    for key in layers:
        _check_pattern(key, f"{where}: layers")
    mixed = document.get("mixed_precision")
    return Section(
        default=_treatment(document.get("default", "keep"), f"{where}: default"),
        layers={str(key): _treatment(entry, f"{where}: {key}") for key, entry in layers.items()},
        reconstruction=_spec(ReconstructionSpec, document.get("reconstruction"), f"{where}: reconstruction"),
        mixed_precision=None if mixed is None else _mixed(mixed, f"{where}: mixed_precision"),
    )


def _check_pattern(key: Any, where: str) -> None:
    try:
        re.compile(str(key).removeprefix("re:"))
    except re.error as error:
        raise UserError(f"{where}: {key}", expected="a regular expression after re:", got=str(error), fix="correct it") from error


def _mixed(document: Any, where: str) -> MixedPrecisionSpec:
    _check_keys(document, {"choices", "metric", "average_bits", "groups"}, {"choices"}, where)
    choices = {str(name): _treatment(entry, f"{where}: {name}") for name, entry in document["choices"].items()}
    kept = {name: choice for name, choice in choices.items() if choice is not None}
    rest = {key: document[key] for key in ("metric", "average_bits", "groups") if key in document}
    return MixedPrecisionSpec(choices=kept, **rest)


def _treatment(document: Any, where: str) -> Treatment | None:
    if document == "keep":
        return None
    _check_keys(document, {f.name for f in dataclasses.fields(Treatment)}, set(), where)
    parts: dict[str, Any] = {
        "weights": _spec(WeightSpec, document.get("weights"), f"{where}: weights"),
        "activations": _spec(ActivationSpec, document.get("activations"), f"{where}: activations"),
        "balance": _spec(BalanceSpec, document.get("balance"), f"{where}: balance"),
        "low_rank": _spec(LowRankSpec, document.get("low_rank"), f"{where}: low_rank"),
    }
    treatment = Treatment(**parts, **{k: document[k] for k in ("rotate", "bypass_tokens", "split_concat") if k in document})
    _check_treatment(treatment, where)
    return treatment


def _spec(kind: Any, document: Any, where: str) -> Any:
    if document is None:
        return None
    fields = {f.name: f for f in dataclasses.fields(kind)}
    required = {name for name, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    _check_keys(document, set(fields), required, where)
    values = {key: tuple(entry) if isinstance(entry, list) else entry for key, entry in document.items()}
    for key, entry in values.items():
        default = fields[key].default
        if not isinstance(default, dataclasses._MISSING_TYPE) and default is not None and not isinstance(entry, _like(default)):
            raise UserError(f"{where}: {key}", expected=type(default).__name__, got=repr(entry), fix="correct the value")
    return kind(**values)


def _like(default: Any) -> Any:
    return (int, float) if isinstance(default, float) else type(default)


def _check_treatment(treatment: Treatment, where: str) -> None:
    weights, activations, balance = treatment.weights, treatment.activations, treatment.balance
    if weights is not None:
        for name in weights.format.split("|"):
            _check_format(name, f"{where}: weights: format")
        _choose(weights.granularity, _GRANULARITY, "tensor, channel or block-N", f"{where}: weights: granularity")
        _choose(weights.range, _RANGE, "minmax, mse, percentile-P or float-search", f"{where}: weights: range")
        _among(weights.rounding, _ROUNDING, f"{where}: weights: rounding")
    if activations is not None:
        for name in activations.format.split("|"):
            _check_format(name, f"{where}: activations: format")
        _among(activations.mode, MODES[1:], f"{where}: activations: mode")
        _choose(activations.granularity, _ACTIVATION_GRANULARITY, "tensor, token, block-N or groups", f"{where}: activations: granularity")
        _choose(activations.range, _RANGE, "minmax, mse, percentile-P, ema or float-search", f"{where}: activations: range")
    if activations is not None and weights is None:
        raise UserError(where, expected="weights beside activations", got="activations alone", fix="give the weights a format")
    if balance is not None:
        _among(balance.method, _BALANCE, f"{where}: balance: method")
    if treatment.rotate is not None:
        _among(treatment.rotate, ("hadamard",), f"{where}: rotate")


def _check_format(name: str, where: str) -> None:
    if name in MICRO_FORMATS:
        return
    try:
        format_of(name)
    except ValueError as error:
        raise UserError(where, expected="a number format", got=repr(name), fix=str(error)) from error


def _choose(entry: str, pattern: re.Pattern[str], wanted: str, where: str) -> None:
    if not pattern.fullmatch(entry):
        raise UserError(where, expected=wanted, got=repr(entry), fix="correct the value")


def _among(entry: str, choices: Iterable[str], where: str) -> None:
    if entry not in choices:
        raise UserError(where, expected=" or ".join(choices), got=repr(entry), fix="choose one of them")


def _check_keys(document: Any, known: set[str], required: set[str], where: str) -> None:
    if not isinstance(document, dict):
        raise UserError(where, expected=f"a mapping with {', '.join(sorted(known))}", got=repr(document), fix="correct the file")
    for key in document:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 3) or sorted(known)
            raise UserError(where, expected=f"one of the keys {', '.join(near)}", got=repr(key), fix="correct the key")
    missing = sorted(required - set(document))
    if missing:
        raise UserError(where, expected=f"the key {missing[0]}", got="none", fix="add it")
