"""Recipe files: YAML -> Recipe, with errors that name the offending key."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from dexport.errors import UserError
from dexport.passes.quantization.ranges import percentile_of
from dexport.passes.quantization.recipe import (
    ACTIVATION_GRANULARITY,
    GRANULARITY,
    MICRO_FORMATS,
    SECTIONS,
    ActivationSpec,
    AttentionSpec,
    BalanceSpec,
    LowRankSpec,
    MixedPrecisionSpec,
    Recipe,
    ReconstructionSpec,
    Section,
    Treatment,
    WeightSpec,
)
from dexport.plugins.activations import MODES
from dexport.plugins.formats import format_of
from dexport.plugins.quantized_attention.reference import PROBABILITIES

_WEIGHT_RANGE = re.compile(r"minmax|mse|percentile-\d+(\.\d+)?|float-search")
_RANGE = re.compile(rf"{_WEIGHT_RANGE.pattern}|ema")
_ROUNDING = ("nearest", "gptq", "adaround")
_BALANCE = ("smoothquant", "vidit-q", "search")
_SAMPLERS = ("uniform", "ndtc", "tdac", "zero-data")
_METRICS = ("sqnr", "output", "model", "end-to-end")
_NUMBERS = {"rank": int}
"""Required entries that are no text."""


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
    _check_keys(document, {"name", "summary", "paper", "sampler", *SECTIONS}, {"name", "summary"}, where)
    if "sampler" in document:
        _among(document["sampler"], _SAMPLERS, f"{where}: sampler")
    sections = {key: _section(document[key], f"{where}: {key}") for key in SECTIONS if key in document}
    texts = {key: str(document[key]) for key in ("name", "summary", "paper", "sampler") if key in document}
    return Recipe(**texts, sections=sections)


def _section(document: Any, where: str) -> Section:
    _check_keys(document, {"default", "layers", "ends", "attention", "reconstruction", "mixed_precision"}, set(), where)
    layers = _mapping(document.get("layers") or {}, f"{where}: layers")
    for key in layers:
        _check_pattern(key, f"{where}: layers")
    mixed = document.get("mixed_precision")
    section = Section(
        default=_treatment(document.get("default", "keep"), f"{where}: default"),
        layers={str(key): _treatment(entry, f"{where}: {key}") for key, entry in layers.items()},
        ends=_treatment(document["ends"], f"{where}: ends") if "ends" in document else "default",
        attention=_attention(document.get("attention"), f"{where}: attention"),
        reconstruction=_spec(ReconstructionSpec, document.get("reconstruction"), f"{where}: reconstruction"),
        mixed_precision=None if mixed is None else _mixed(mixed, f"{where}: mixed_precision"),
    )
    if section.reconstruction is not None:
        _among(section.reconstruction.unit, ("layer", "block"), f"{where}: reconstruction: unit")
    return section


def _attention(document: Any, where: str) -> AttentionSpec | None:
    spec: AttentionSpec | None = _spec(AttentionSpec, document, where)
    if spec is None:
        return None
    _check_format(spec.format, f"{where}: format", levels=1)
    _choose(spec.probabilities, PROBABILITIES, "e4m3 or log2-B with B from 1 to 8", f"{where}: probabilities")
    _among(spec.keys, ("all", "text"), f"{where}: keys")
    if spec.start_tokens < 0:
        raise UserError(f"{where}: start_tokens", expected="a number of tokens", got=str(spec.start_tokens), fix="correct the value")
    return spec


def _check_pattern(key: Any, where: str) -> None:
    try:
        re.compile(str(key).removeprefix("re:"))
    except re.error as error:
        raise UserError(f"{where}: {key}", expected="a regular expression after re:", got=str(error), fix="correct it") from error


def _mixed(document: Any, where: str) -> MixedPrecisionSpec:
    _check_keys(document, {"choices", "metric", "average_bits", "groups"}, {"choices"}, where)
    listed = _mapping(document["choices"], f"{where}: choices")
    choices = {str(name): _treatment(entry, f"{where}: {name}") for name, entry in listed.items()}
    for pattern in _mapping(document.get("groups", {}), f"{where}: groups").values():
        _check_pattern(pattern, f"{where}: groups")
    if "metric" in document:
        _among(document["metric"], _METRICS, f"{where}: metric")
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
        wanted = _NUMBERS.get(key, str) if key in required else type(fields[key].default)
        if type(entry) is not wanted and not (wanted is float and type(entry) is int):
            raise UserError(f"{where}: {key}", expected=wanted.__name__, got=repr(entry), fix="correct the value")
    return kind(**values)


def _check_treatment(treatment: Treatment, where: str) -> None:
    weights, activations, balance = treatment.weights, treatment.activations, treatment.balance
    if weights is not None:
        for name in weights.format.split("|"):
            _check_format(name, f"{where}: weights: format")
        _choose(weights.granularity, GRANULARITY, "tensor, channel or block-N", f"{where}: weights: granularity")
        _check_range(weights.range, _WEIGHT_RANGE, "minmax, mse, percentile-P or float-search", f"{where}: weights: range")
        _among(weights.rounding, _ROUNDING, f"{where}: weights: rounding")
    if activations is not None:
        _check_activations(activations, f"{where}: activations")
    if activations is not None and weights is None:
        raise UserError(where, expected="weights beside activations", got="activations alone", fix="give the weights a format")
    if balance is not None:
        _among(balance.method, _BALANCE, f"{where}: balance: method")
    if treatment.rotate is not None:
        _among(treatment.rotate, ("hadamard",), f"{where}: rotate")
    if treatment.low_rank is not None and min(treatment.low_rank.rank, treatment.low_rank.iterations) < 1:
        got = f"{treatment.low_rank.rank} and {treatment.low_rank.iterations}"
        raise UserError(f"{where}: low_rank", expected="a rank and iterations of at least 1", got=got, fix="correct the value")
    tokens = treatment.bypass_tokens
    if tokens != "auto" and (type(tokens) is not int or tokens < 0):
        raise UserError(f"{where}: bypass_tokens", expected="a number of tokens or auto", got=repr(tokens), fix="correct the value")
    if type(treatment.split_concat) is not bool:
        raise UserError(f"{where}: split_concat", expected="true or false", got=repr(treatment.split_concat), fix="correct the value")


def _check_activations(activations: ActivationSpec, where: str) -> None:
    for name in activations.format.split("|"):
        _check_format(name, f"{where}: format")
    _among(activations.mode, MODES[1:], f"{where}: mode")
    _choose(activations.granularity, ACTIVATION_GRANULARITY, "tensor, token, block-N or groups", f"{where}: granularity")
    _check_range(activations.range, _RANGE, "minmax, mse, percentile-P, ema or float-search", f"{where}: range")
    dynamic, got = activations.mode.startswith("dynamic"), repr(activations.granularity)
    if dynamic and "groups" in activations.granularity:
        raise UserError(f"{where}: granularity", expected="token or block-N", got=got, fix="or choose mode static or table")
    if not dynamic and activations.granularity.startswith("block"):
        raise UserError(f"{where}: granularity", expected="tensor, token or groups", got=got, fix="or choose mode dynamic")
    if not dynamic and activations.format in MICRO_FORMATS:
        raise UserError(f"{where}: mode", expected=f"dynamic for {activations.format}", got=activations.mode, fix="choose mode dynamic")


def _check_format(name: str, where: str, levels: int = 2) -> None:
    """Refuses what is no format with up to so many levels of scales."""
    if name in MICRO_FORMATS and levels == 2:
        return
    try:
        format_of(name)
    except ValueError as error:
        raise UserError(where, expected="a number format", got=repr(name), fix=str(error)) from error


def _choose(entry: str, pattern: re.Pattern[str], wanted: str, where: str) -> None:
    if not pattern.fullmatch(entry):
        raise UserError(where, expected=wanted, got=repr(entry), fix="correct the value")


def _check_range(entry: str, pattern: re.Pattern[str], wanted: str, where: str) -> None:
    _choose(entry, pattern, wanted, where)
    try:
        percentile_of(entry)
    except ValueError as error:
        raise UserError(where, expected="P above 0 and at most 100", got=repr(entry), fix="correct the value") from error


def _mapping(document: Any, where: str) -> dict[Any, Any]:
    if not isinstance(document, dict):
        raise UserError(where, expected="a mapping", got=repr(document), fix="correct the file")
    return document


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
