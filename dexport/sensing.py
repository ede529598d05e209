"""`dexport sensitivity`: statistics and a recipe become a table, a file and a picture of how much each layer suffers."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dexport.building import export_extra
from dexport.columns import columns
from dexport.errors import UserError
from dexport.exporter.prompts import read_prompts
from dexport.progress import reporting

if TYPE_CHECKING:
    from dexport.exporter.sensitivity_table import SensitivityTable

METRICS = ("sqnr", "output", "model", "end-to-end")
DEFAULT_RECIPE = "vidit-q-mp"
_RUNNING = ("model", "end-to-end")
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class SensitivityRequest:
    """The arguments of `dexport sensitivity`, as typed."""

    model: str
    statistics: Path
    output: Path
    recipe: str = DEFAULT_RECIPE
    metric: str = "output"
    ranges: int = 4
    prompts: Path | None = None
    pictures: int = 4
    scorer: str | None = None


def sensitivity_command(request: SensitivityRequest) -> None:
    """Measures, writes OUT.json and OUT.svg, and prints the layers that suffer most. Interrupted, the same command goes on.

    Raises:
        UserError: whatever is wrong with the request, before the work where that can be known.
    """
    _check(request)
    prompts = None if request.prompts is None else read_prompts(request.prompts)
    start = time.monotonic()
    table = _measured(request, prompts)
    with export_extra():
        from dexport.exporter.sensitivity_plot import plot
    picture = request.output.with_suffix(".svg")
    picture.write_text(plot(table), encoding="utf-8")
    for line in table_lines(table):
        click.echo(line)
    click.echo(f"wrote {request.output} and {picture} in {time.monotonic() - start:.1f} s")


def table_lines(table: SensitivityTable, most: int = _SHOWN) -> list[str]:
    """The layers that suffer most, the worst first: decibels of every range under every choice."""
    measures = [m for m in dict.fromkeys((table.measure, "prompt", "score")) if _has(table, m)]
    choices = table.choices()
    ranked = sorted(table.harms, key=lambda unit: -max(table.harm(unit, c, table.measure) for c in table.harms[unit]))
    heads = [(c, m, n) for c in choices for m in measures for n in table.range_names(m)]
    first = ["layer", *(c for c, _, _ in heads)]
    second = ["", *(m for _, m, _ in heads)]
    third = ["", *(n for _, _, n in heads)]
    rows = [[unit, *(cell for c in choices for m in measures for cell in _decibels(table, unit, c, m))] for unit in ranked[:most]]
    lines = columns([first, second, third, *rows])
    left = len(ranked) - most
    return [*lines, *([f"and {left} more layers, in the file"] if left > 0 else []), "in dB, larger is worse"]


def _has(table: SensitivityTable, measure: str) -> bool:
    return any(measure in harms for found in table.harms.values() for harms in found.values())


def _decibels(table: SensitivityTable, unit: str, choice: str, measure: str) -> list[str]:
    values = table.harms[unit].get(choice, {}).get(measure)
    if values is None:
        return ["-"] * len(table.range_names(measure))
    return [f"{10 * math.log10(v):.1f}" if v > 0 else "-inf" for v in values]


def _check(request: SensitivityRequest) -> None:
    if request.metric not in METRICS:
        raise UserError("--metric", expected=" or ".join(METRICS), got=repr(request.metric), fix="choose one of them")
    for flag, given in (("--prompts", request.prompts), ("--scorer", request.scorer)):
        wanted = _RUNNING if flag == "--prompts" else ("end-to-end",)
        if given is not None and request.metric not in wanted:
            expected = f"none with --metric {request.metric}, which makes no pictures"
            raise UserError(flag, expected=expected, got=str(given), fix=f"leave it out, or choose --metric {' or '.join(wanted)}")
    where = f"--output {request.output}"
    if request.output.suffix != ".json":
        raise UserError(where, expected="a name that ends in .json", got=request.output.name, fix="the picture goes beside it, as .svg")
    if not request.output.parent.is_dir():
        raise UserError(where, expected="a file in a folder that exists", got=str(request.output.parent), fix="make it, or choose another")


def _measured(request: SensitivityRequest, prompts: tuple[str, ...] | None) -> SensitivityTable:
    with export_extra(), reporting() as report:
        report("import torch and diffusers", None)
        from dexport.exporter.recipe_sensitivity import Asked, model_sensitivity

        asked = Asked(
            model=request.model,
            statistics=request.statistics,
            recipe=request.recipe,
            metric=request.metric,
            ranges=request.ranges,
            pictures=request.pictures,
            prompts=prompts,
            scorer=request.scorer,
            output=request.output,
        )
        return model_sensitivity(asked, report)
