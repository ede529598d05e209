"""Recipes: what to do to which layer, as frozen data (`recipe_file.py` reads it from YAML).

A recipe is values over orthogonal primitives, never code. It has a section per part of the pipeline:

    denoiser       the loop
    prelude        what hoisting moved out of the loop and runs once per prompt
    text_encoder   every text encoder
    vae            the decoder

A section says what happens to a layer in this order of precedence: its exact name, then `re:` patterns in the order written (matched
anywhere in the name), then `ends` if it is one of the first or last layers, then `default`. "keep" leaves a layer as it is. A pattern or
name that matches nothing is an error when the recipe is applied.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Literal

from dexport.errors import UserError

SECTIONS = ("denoiser", "prelude", "text_encoder", "vae")
MICRO_FORMATS = {"nvfp4": ("e2m1", 16), "mxfp4": ("e2m1", 32)}
"""Formats with two levels of scales: the format of the codes and the size of a block."""

GRANULARITY = re.compile(r"tensor|channel|block-([1-9]\d*)")
ACTIVATION_GRANULARITY = re.compile(r"tensor|token|block-([1-9]\d*)|(?:channel-|token-|)groups-[1-9]\d*")


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
        match = GRANULARITY.fullmatch(self.granularity)
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
        match = ACTIVATION_GRANULARITY.fullmatch(self.granularity)
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
            candidates of SVDQuant and keeps the one with the least output error; "given" is found elsewhere (no recipe can say it).
        alpha: the exponent; unused by "search" and "given".
    """

    method: str
    alpha: float = 0.5


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
class AttentionSpec:
    """How attention is quantized (plugins/quantized_attention).

    Attributes:
        format: of queries, keys and values, one constant scale each.
        probabilities: "e4m3", or "log2-B": powers of two with codes of B bits, times the largest probability of each picture (DGQ).
        keys: "all", or "text": only attentions whose keys the prompt alone decides.
        start_tokens: leading keys of a text that are left out, their probabilities too.
    """

    format: str
    probabilities: str
    keys: str = "all"
    start_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Section:
    """How one part of the pipeline is treated; `layers` keeps the order of the file, None stands for "keep"."""

    default: Treatment | None = None
    layers: Mapping[str, Treatment | None] = field(default_factory=dict)
    ends: Treatment | Literal["default"] | None = "default"
    attention: AttentionSpec | None = None
    reconstruction: ReconstructionSpec | None = None
    mixed_precision: MixedPrecisionSpec | None = None

    def treatments(self, names: Iterable[str], ends: Set[str], where: str) -> dict[str, Treatment | None]:
        """The treatment of every layer; `ends` are the first and last ones.

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
        return {name: self._treatment(name, name in ends) for name in listed}

    def _treatment(self, name: str, end: bool) -> Treatment | None:
        if name in self.layers:
            return self.layers[name]
        found = next((key for key in self.layers if _matches(key, name)), None)
        if found is not None:
            return self.layers[found]
        return self.ends if end and self.ends != "default" else self.default

    @property
    def calibrated(self) -> bool:
        """Whether statistics are needed."""
        if self.reconstruction is not None or self.mixed_precision is not None or self.attention is not None:
            return True
        every = (self.default, *self.layers.values(), None if self.ends == "default" else self.ends)
        return any(t is not None and t.calibrated for t in every)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named set of sections, with where it comes from; `sampler` chooses the inputs that reconstruction sees."""

    name: str
    summary: str
    paper: str = ""
    sampler: str = "uniform"
    sections: Mapping[str, Section] = field(default_factory=dict)

    def section(self, name: str) -> Section | None:
        """The section of a part, None if the recipe leaves the part alone."""
        return self.sections.get(name)

    @property
    def calibrated(self) -> bool:
        """Whether statistics are needed."""
        return any(section.calibrated for section in self.sections.values())


def _matches(key: str, name: str) -> bool:
    return bool(re.search(key[3:], name)) if key.startswith("re:") else key == name
