"""Statistics: what calibration saw of every site at every step, as a value, and as a file.

Notation: T steps of the calibrated schedule (1 for components that run once per prompt), C input channels of the site, N tokens (rows of
one picture), R rows of the reservoir, B histogram bins.

The file is safetensors: tensors named "component/site/field", everything else as JSON in its metadata. Sites that read one value share
one object; the file holds it once, under the first of them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from dexport.errors import UserError

VERSION = 1
BINS = 512


@dataclass(frozen=True)
class SiteStatistics:
    """What entered one site, or an operand of an attention (only extremes are known then; all heads are its channels, the rest is empty).

    Attributes:
        count: rows (tokens or pixels) seen, int64 [T].
        minimum, maximum, mean, square: per channel, float32 [T, C]; `square` is the mean of squares.
        histogram: of all values, int64 [T, B], evenly over [-limit, limit].
        limit: float32 [T], powers of two.
        token_minimum, token_maximum: per token, float32 [T, N], where the number of tokens is fixed; else None.
        rows: a uniform sample of whole rows, float32 [R, C], over all steps and prompts.
        row_steps: the step of each, int64 [R].
    """

    count: torch.Tensor
    minimum: torch.Tensor
    maximum: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor
    histogram: torch.Tensor
    limit: torch.Tensor
    token_minimum: torch.Tensor | None
    token_maximum: torch.Tensor | None
    rows: torch.Tensor
    row_steps: torch.Tensor

    @property
    def absmax(self) -> torch.Tensor:
        """Largest magnitude per channel, [T, C]."""
        return torch.maximum(self.maximum, -self.minimum)


def histogram(x: torch.Tensor, limit: float) -> torch.Tensor:
    """How many numbers of x, all of them smaller in magnitude than `limit`, are in each bin: int64 [B], evenly over [-limit, limit)."""
    bins = (x.reshape(-1).float() * (BINS / 2 / limit)).floor_().to(torch.int16)
    return torch.bincount(bins.add_(BINS // 2), minlength=BINS)


@dataclass(frozen=True)
class Schedule:
    """The steps that were calibrated: `timesteps` and `sigmas` have one entry per call of the denoiser."""

    scheduler: str
    steps: int
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]


@dataclass(frozen=True)
class Samples:
    """Inputs of the loop that reconstruction runs again: what `prompts` and `seeds` started, as it was when it entered the loop.

    Attributes:
        prompts, seeds: one per picture.
        latents: float32 [S, C, h, w] (or with frames).
        steps: the step of each, int64 [S].
        pictures: which prompt it belongs to, int64 [S].
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    latents: torch.Tensor
    steps: torch.Tensor
    pictures: torch.Tensor


@dataclass(frozen=True)
class Statistics:
    """A calibration.

    Attributes:
        model: sha256 of the pipeline directory (`exporter/source.py`).
        size: height and width in pixels.
        guidance: the scale that was used.
        sampler: how `samples` were chosen.
        components: component name -> site name -> what was seen.
    """

    model: str
    schedule: Schedule
    size: tuple[int, int]
    guidance: float
    sampler: str
    samples: Samples
    components: Mapping[str, Mapping[str, SiteStatistics]]

    def of(self, component: str, site: str) -> SiteStatistics | None:
        """What was seen of a site, None if nothing was."""
        return self.components.get(component, {}).get(site)


def save_statistics(statistics: Statistics, path: Path) -> None:
    """Writes the file; it appears complete or not at all."""
    tensors = {f"samples/{name}": getattr(statistics.samples, name) for name in ("latents", "steps", "pictures")}
    written: dict[int, str] = {}
    same: dict[str, str] = {}
    for component, found in statistics.components.items():
        for site, seen in found.items():
            place = f"{component}/{site}"
            if written.setdefault(id(seen), place) != place:
                same[place] = written[id(seen)]
                continue
            values = {f.name: getattr(seen, f.name) for f in dataclasses.fields(seen)}
            tensors |= {f"{place}/{name}": t.contiguous() for name, t in values.items() if t is not None}
    about = {
        "version": VERSION,
        "model": statistics.model,
        "schedule": dataclasses.asdict(statistics.schedule),
        "size": list(statistics.size),
        "guidance": statistics.guidance,
        "sampler": statistics.sampler,
        "prompts": list(statistics.samples.prompts),
        "seeds": list(statistics.samples.seeds),
        "same": same,
    }
    partial = path.with_name(f".{path.name}.partial")
    safetensors.torch.save_file(tensors, partial, {"dexport.statistics": json.dumps(about)})
    partial.replace(path)


def load_statistics(path: Path) -> Statistics:
    """Reads a file that `save_statistics` wrote.

    Raises:
        UserError: not a statistics file, or of another version.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["dexport.statistics"])
            if about["version"] != VERSION:
                raise UserError(str(path), expected=f"statistics of version {VERSION}", got=str(about["version"]), fix="calibrate again")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return _read(about, tensors)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else "something else"
        raise UserError(str(path), expected="a file of `dexport calibrate`", got=got, fix="run: dexport calibrate MODEL -o FILE") from error


def _read(about: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> Statistics:
    given = about["schedule"]
    schedule = Schedule(given["scheduler"], given["steps"], tuple(given["timesteps"]), tuple(given["sigmas"]))
    samples = Samples(
        prompts=tuple(about["prompts"]),
        seeds=tuple(about["seeds"]),
        latents=tensors.pop("samples/latents"),
        steps=tensors.pop("samples/steps"),
        pictures=tensors.pop("samples/pictures"),
    )
    height, width = about["size"]
    components = _components(tensors, about.get("same", {}))
    return Statistics(about["model"], schedule, (height, width), about["guidance"], about["sampler"], samples, components)


def _components(tensors: Mapping[str, torch.Tensor], same: Mapping[str, str]) -> dict[str, dict[str, SiteStatistics]]:
    fields: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
    for name, tensor in tensors.items():
        component, site, field = name.split("/")
        fields.setdefault(component, {}).setdefault(site, {})[field] = tensor
    optional: dict[str, Any] = dict.fromkeys(("token_minimum", "token_maximum"))
    components = {name: {site: SiteStatistics(**(optional | found)) for site, found in inner.items()} for name, inner in fields.items()}
    for place, first in same.items():
        (component, site), (other, origin) = place.split("/"), first.split("/")
        components.setdefault(component, {})[site] = components[other][origin]
    return components
