"""What a sensitivity measurement found, as a value, and as a JSON file that measuring goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dexport.errors import Failure, UserError
from dexport.exporter.report.data import Sensitivity

VERSION = 1
WHOLE_RUN = "whole run"

MEASURES = {
    "weight": "noise over signal of the weight",
    "layer": "noise over signal of the layer's output",
    "output": "noise over signal of the denoiser's output, guidance applied",
    "picture": "mean squared error of the pictures, of 1 as the largest",
    "prompt": "noise over signal of what the prompt adds to the denoiser's output",
    "score": "loss of score",
}
"""What a harm may be, in words; larger is worse."""

Harms = Mapping[str, tuple[float, ...]]
"""Measure -> a value per range of steps, or one for the whole run."""


@dataclass(frozen=True, kw_only=True)
class SensitivityTable:
    """Harms of every unit under every choice.

    Attributes:
        component: name of the graph.
        metric: "sqnr", "output", "model" or "end-to-end".
        measure: the one of `MEASURES` that the metric is about.
        ranges: steps, first and last.
        units: unit -> its sites.
        harms: unit -> choice -> harms; grows while measuring.
        identity: everything that decides the figures.
    """

    component: str
    metric: str
    measure: str
    ranges: tuple[tuple[int, int], ...]
    units: Mapping[str, tuple[str, ...]]
    identity: Mapping[str, Any]
    harms: Mapping[str, Mapping[str, Harms]] = field(default_factory=dict)

    def with_harms(self, unit: str, choice: str, harms: Harms) -> SensitivityTable:
        """One more."""
        return replace(self, harms={**self.harms, unit: {**self.harms.get(unit, {}), choice: harms}})

    def has(self, unit: str, choice: str) -> bool:
        """Whether it was measured."""
        return choice in self.harms.get(unit, {})

    def choices(self) -> tuple[str, ...]:
        """The choices that were measured, in order."""
        return tuple(dict.fromkeys(choice for found in self.harms.values() for choice in found))

    def range_names(self, measure: str) -> tuple[str, ...]:
        """What the values of a measure are of, such as "steps 1-5"."""
        count = max((len(h[measure]) for found in self.harms.values() for h in found.values() if measure in h), default=0)
        if count != len(self.ranges):
            return (WHOLE_RUN,) * min(count, 1)
        return tuple(f"steps {first + 1}-{last + 1}" for first, last in self.ranges)

    def harm(self, unit: str, choice: str, measure: str) -> float:
        """The mean over the steps."""
        values = self.harms[unit][choice][measure]
        if len(values) != len(self.ranges):
            return values[0]
        lengths = [last - first + 1 for first, last in self.ranges]
        return sum(v * n for v, n in zip(values, lengths)) / sum(lengths)

    def for_report(self, choice: str, measure: str | None = None) -> Sensitivity:
        """What the report shows of one choice."""
        measure = measure or self.measure
        sites = {unit: tuple(found[choice][measure]) for unit, found in self.harms.items() if measure in found.get(choice, {})}
        return Sensitivity(metric=f"{choice}: {MEASURES[measure]}", sites=sites, ranges=self.range_names(measure))


def save_table(table: SensitivityTable, path: Path) -> None:
    """Writes the file; it appears complete or not at all.

    Raises:
        Failure: it cannot be written.
    """
    document = {
        "version": VERSION,
        "component": table.component,
        "metric": table.metric,
        "measure": table.measure,
        "measures": MEASURES,
        "ranges": [list(r) for r in table.ranges],
        "units": {unit: list(sites) for unit, sites in table.units.items()},
        "identity": table.identity,
        "harms": table.harms,
    }
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(document, indent=1), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        fix = "make room, or choose another folder with -o"
        raise Failure(str(path), expected="to be written", got=error.strerror or str(error), fix=fix) from error


def load_table(path: Path) -> SensitivityTable:
    """Reads a file of `save_table`.

    Raises:
        UserError: something else, or damaged.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] != VERSION:
            raise UserError(str(path), expected=f"sensitivities of version {VERSION}", got=str(document["version"]), fix="measure again")
        return SensitivityTable(
            component=str(document["component"]),
            metric=str(document["metric"]),
            measure=str(document["measure"]),
            ranges=tuple((int(first), int(last)) for first, last in document["ranges"]),
            units={unit: tuple(sites) for unit, sites in document["units"].items()},
            identity=document["identity"],
            harms={
                unit: {choice: {m: tuple(float(v) for v in values) for m, values in harms.items()} for choice, harms in found.items()}
                for unit, found in document["harms"].items()
            },
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else "something else or a damaged file"
        raise UserError(str(path), expected="a file of `dexport sensitivity`", got=got, fix="delete it to begin anew") from error


def resumed(table: SensitivityTable, path: Path) -> SensitivityTable:
    """The table with what a file has of it already; the table itself if there is no file.

    Raises:
        UserError: the file is of another measurement; names the first difference.
    """
    if not path.exists():
        return table
    known = load_table(path)
    mine = json.loads(json.dumps({**table.identity, "units": table.units, "ranges": table.ranges}))
    theirs = json.loads(json.dumps({**known.identity, "units": known.units, "ranges": known.ranges}))
    for key, wanted in mine.items():
        if theirs.get(key) != wanted:
            fix = "repeat the command that began it, or delete the file to begin anew"
            raise UserError(str(path), expected=f"sensitivities with {key} {_short(wanted)}", got=_short(theirs.get(key)), fix=fix)
    return replace(table, harms=known.harms)


def _short(entry: Any) -> str:
    text = entry if isinstance(entry, str) else json.dumps(entry)
    return text if len(text) <= 60 else f"{text[:57]}..."
