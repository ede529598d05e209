"""The heat map: well formed, with a cell for every figure, darker where it is worse."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from dexport.exporter.sensitivity_plot import plot
from dexport.exporter.sensitivity_table import SensitivityTable

SVG = "{http://www.w3.org/2000/svg}"
TABLE = SensitivityTable(
    component="denoiser",
    metric="model",
    measure="output",
    ranges=((0, 4), (5, 9)),
    units={"blocks.0.q": ("blocks.0.q",), 'odd<&">': ("b",)},
    identity={},
    harms={
        "blocks.0.q": {"w4": {"output": (1e-2, 1e-3)}, "w8": {"output": (1e-5, 0.0)}},
        'odd<&">': {"w4": {"output": (1.0, 1e-4)}},
    },
)


def test_every_figure_has_a_cell_and_darker_is_worse() -> None:
    root = ElementTree.fromstring(plot(TABLE))
    cells = {rect[0].text: rect.get("fill") for rect in root.iter(f"{SVG}rect") if len(rect)}
    assert cells["blocks.0.q, w4, steps 1-5: −20.0 dB"] == _between(cells)
    assert len(cells) == 6
    fills = [
        cells[f"{name} dB"]
        for name in (
            'odd<&">, w4, steps 1-5: 0.0',
            "blocks.0.q, w4, steps 1-5: −20.0",
            "blocks.0.q, w4, steps 6-10: −30.0",
            'odd<&">, w4, steps 6-10: −40.0',
            "blocks.0.q, w8, steps 1-5: −50.0",
            "blocks.0.q, w8, steps 6-10: −120.0",
        )
    ]
    shades = [sum(map(int, re.findall(r"\d+", fill or ""))) for fill in fills]
    assert shades == sorted(shades) and len(set(shades)) == 6
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert texts.count("-") == 2  # not measured under w8
    assert {"denoiser: sensitivity", "w4", "w8", "1-5", "6-10", "metric model; 2 layers; steps 1-5, 6-10"} <= set(texts)


def _between(cells: dict[str | None, str | None]) -> str | None:
    return cells["blocks.0.q, w4, steps 1-5: −20.0 dB"]


def test_everything_is_inside_the_drawing() -> None:
    root = ElementTree.fromstring(plot(TABLE))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for rect in root.iter(f"{SVG}rect"):
        if len(rect):
            assert 0 <= float(rect.get("x", -1)) <= width - float(rect.get("width", 0))
            assert 0 <= float(rect.get("y", -1)) <= height - float(rect.get("height", 0))


def test_one_figure_and_none() -> None:
    one = SensitivityTable(
        component="denoiser",
        metric="end-to-end",
        measure="picture",
        ranges=((0, 9),),
        units={"a": ("a",)},
        identity={},
        harms={"a": {"w4": {"picture": (0.25,)}}},
    )
    assert "a, w4, whole run: −6.0 dB" in plot(one) or "a, w4, steps 1-10: −6.0 dB" in plot(one)
    assert ElementTree.fromstring(plot(SensitivityTable(**{**one.__dict__, "harms": {}}))).tag == f"{SVG}svg"
