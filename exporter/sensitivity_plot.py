"""Sensitivities as a picture: a heat map, a row per layer and a column per choice and range of steps, as SVG that needs nothing else."""

from __future__ import annotations

import math
from html import escape

from dexport.exporter.sensitivity_table import MEASURES, SensitivityTable

_ROW, _CELL, _LETTER = 18, 64, 6.7
_MARGIN, _HEAD, _FOOT = 12, 84, 30
_SMALLEST = 1e-12
_LIGHT, _DARK = (240, 244, 250), (140, 30, 20)
_STYLE = (
    "text{font:11px ui-monospace,Menlo,Consolas,monospace;fill:#222}.title{font-size:14px;font-weight:600}.head{font-weight:600}"
    ".cell{text-anchor:middle}.light{fill:#fff}"
)


def plot(table: SensitivityTable, measure: str | None = None) -> str:
    """The SVG text. Cells say decibels (10 log10 of the harm); darker is worse, on one scale for the whole picture.

    Args:
        measure: one of those that the table has; None takes the one that its metric is about.
    """
    measure = measure or table.measure
    names, columns = table.range_names(measure), table.choices()
    rows = {unit: [_cells(table, unit, choice, measure, len(names)) for choice in columns] for unit in table.harms}
    known = [value for found in rows.values() for cells in found for value in cells if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    left = _MARGIN + _LETTER * max([len(unit) for unit in rows], default=0) + 10
    width = max(left + _CELL * len(names) * len(columns) + _MARGIN, 560)
    body = [_text(_MARGIN, 24, f"{table.component}: sensitivity", "title"), _text(_MARGIN, 42, f"{MEASURES[measure]}, dB; darker is worse")]
    for number, choice in enumerate(columns):
        start = left + _CELL * len(names) * number
        body.append(_text(start + 2, 62, choice, "head"))
        body += [_text(start + _CELL * (i + 0.5), 78, name.removeprefix("steps "), "cell") for i, name in enumerate(names)]
    for index, (unit, found) in enumerate(rows.items()):
        y = _HEAD + _ROW * index
        body.append(_text(_MARGIN, y + 13, unit))
        for number, cells in enumerate(found):
            for i, value in enumerate(cells):
                what = f"{unit}, {columns[number]}, {names[i]}"
                body += _cell(left + _CELL * (len(names) * number + i), y, value, (low, high), what)
    height = _HEAD + _ROW * len(rows) + _FOOT
    body.append(_text(_MARGIN, height - 10, _footer(table, names)))
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f"<style>{_STYLE}</style>",
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    return "\n".join([*head, *body, "</svg>", ""])


def _cells(table: SensitivityTable, unit: str, choice: str, measure: str, count: int) -> list[float | None]:
    """Decibels per range, None where nothing was measured."""
    values = table.harms[unit].get(choice, {}).get(measure)
    return [None] * count if values is None else [10 * math.log10(max(value, _SMALLEST)) for value in values]


def _cell(x: float, y: float, value: float | None, span: tuple[float, float], what: str) -> list[str]:
    if value is None:
        return [_text(x + _CELL / 2, y + 13, "-", "cell")]
    share = (value - span[0]) / (span[1] - span[0]) if span[1] > span[0] else 0.0
    colour = ",".join(f"{light + share * (dark - light):.0f}" for light, dark in zip(_LIGHT, _DARK))
    box = f'<rect x="{x + 1:.1f}" y="{y + 1}" width="{_CELL - 2}" height="{_ROW - 2}" rx="2" fill="rgb({colour})">'
    label = f"{value:.1f}".replace("-", "−")
    return [
        f"{box}<title>{escape(what)}: {label} dB</title></rect>",
        _text(x + _CELL / 2, y + 13, label, "cell light" if share > 0.5 else "cell"),
    ]


def _footer(table: SensitivityTable, names: tuple[str, ...]) -> str:
    over = f"steps {', '.join(name.removeprefix('steps ') for name in names)}" if len(names) > 1 else "".join(names)
    return f"metric {table.metric}; {len(table.harms)} layers; {over}"


def _text(x: float, y: float, content: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{style}>{escape(content)}</text>'
