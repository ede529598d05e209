"""The report as one HTML page: no script, no network, pictures and style inside; readable on a phone and in the dark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from dexport.exporter.quality import Quality
from dexport.exporter.report.bitmap import Look, bit_map, look_bits
from dexport.exporter.report.charts import LineChart, line_chart
from dexport.exporter.report.data import Remark, ReportData, average_bits, report_to_json
from dexport.exporter.report.pictures import DIFFERENCE_COLOURS, Gallery, gallery

PAGE_NAME, JSON_NAME = "index.html", "report.json"
MOST_SENSITIVE = 20
_TEMPLATE, _STYLE = "page.html.j2", "style.css"


@dataclass(frozen=True)
class Headline:
    """One figure at the top: its name, the figure, and what it means."""

    name: str
    figure: str
    detail: str


@dataclass(frozen=True)
class Group:
    """Sites of one component that share a reason."""

    component: str
    reason: str
    sites: tuple[str, ...]


@dataclass(frozen=True)
class SensitiveSite:
    """A site, its value in every range, these relative to the largest of all (0 to 1), the largest of them, and its bits."""

    site: str
    values: tuple[float, ...]
    shares: tuple[float, ...]
    value: float
    bits: str
    look: Look | None


@dataclass(frozen=True)
class SensitivityTable:
    """The most sensitive sites of a component; `total` counts all."""

    component: str
    metric: str
    ranges: tuple[str, ...]
    sites: tuple[SensitiveSite, ...]
    total: int


def write_report(data: ReportData, folder: Path) -> None:
    """Writes `index.html` and `report.json` into a folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PAGE_NAME).write_text(report_page(data), encoding="utf-8")
    (folder / JSON_NAME).write_text(json.dumps(report_to_json(data), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def report_page(data: ReportData) -> str:
    """The page, complete in one string; at most 3 MB if the bit map has at most a few thousand sites."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"amount": amount, "compact": compact}
    return environment.get_template(_TEMPLATE).render(
        data=data,
        style=_resource(_STYLE),
        headlines=headlines(data),
        gallery=gallery(data.pairs) if data.pairs else Gallery((), 255, 0),
        colours=DIFFERENCE_COLOURS,
        drift=drift(data.quality),
        bit_maps=[bit_map(component, sites) for component, sites in data.bit_map.items() if sites],
        sensitivity=sensitivity(data),
        remarks=[
            ("degraded", "Degraded", "These layers got something else than the recipe says.", grouped(data.degraded)),
            ("skipped", "Left alone", "These layers are as they were in the model.", grouped(data.skipped)),
        ],
        kernel_kinds=list(dict.fromkeys(kind for kinds in data.kernels.values() for kind in kinds)),
    )


def headlines(data: ReportData) -> list[Headline]:
    """The figures that a reader looks for first."""
    found = []
    quality = data.quality
    if quality is not None:
        over = f"median of {quality.pictures} pictures" if quality.pictures > 1 else "one picture"
        found.append(Headline("PSNR", f"{quality.psnr.median:.1f} dB", f"{over}; 10th percentile {quality.psnr.p10:.1f} dB"))
        found.append(Headline("SSIM", f"{quality.ssim.median:.4f}", f"{over}; 10th percentile {quality.ssim.p10:.4f}"))
        if quality.score is not None:
            score = quality.score
            interval = f"95 % interval of the change {score.low:+.4f} to {score.high:+.4f}"
            detail = f"reference {score.reference:.4f}, change {score.change:+.4f}; {interval}; {score.pictures} pictures"
            found.append(Headline("Score", f"{score.candidate:.4f}", detail))
        if quality.latent_cosine:
            detail = f"SNR {quality.latent_snr[-1]:.1f} dB; after the last of {len(quality.latent_cosine)} steps"
            found.append(Headline("Latent cosine", f"{quality.latent_cosine[-1]:.5f}", detail))
    found += [
        Headline("Bits per weight", f"{average_bits(sites):.2f}", f"average over {component}, scales included")
        for component, sites in list(data.bit_map.items())[:1]
        if sites
    ]
    before, after = (sum(getattr(change, side) for change in data.weight_bytes.values()) for side in ("before", "after"))
    if after:
        smaller = f": {before / after:.1f} times smaller" if before > 1.05 * after else ""
        found.append(Headline("Weights", amount(after, "B"), f"of {amount(before, 'B')}{smaller}"))
    if data.latency_ms:
        found.append(Headline("Time", f"{compact(sum(data.latency_ms.values()))} ms", "estimated for one picture"))
    return found


def drift(quality: Quality | None) -> list[LineChart]:
    """How far the latents have gone apart after every step."""
    if quality is None or not quality.latent_cosine:
        return []
    return [
        line_chart("Cosine of the latents", quality.latent_cosine, highest=1.0),
        line_chart("Signal to noise of the latents, dB", quality.latent_snr, highest=100.0),
    ]


def grouped(remarks: Sequence[Remark]) -> list[Group]:
    """Remarks by component and reason, in the order of their first appearance."""
    sites: dict[tuple[str, str], list[str]] = {}
    for remark in remarks:
        sites.setdefault((remark.component, remark.reason), []).append(remark.site)
    return [Group(component, reason, tuple(site for site in found if site)) for (component, reason), found in sites.items()]


def sensitivity(data: ReportData) -> list[SensitivityTable]:
    """The most sensitive sites of every component, the worst first."""
    tables = []
    for component, measured in data.sensitivity.items():
        ranked = sorted(measured.sites.items(), key=lambda entry: -max(entry[1]))[:MOST_SENSITIVE]
        if not ranked:
            continue
        largest = max(max(ranked[0][1]), 1e-30)
        looks = _looks(data, component)
        rows = tuple(
            SensitiveSite(site, values, tuple(max(v, 0) / largest for v in values), max(values), *looks.get(site, ("", None)))
            for site, values in ranked
        )
        tables.append(SensitivityTable(component, measured.metric, measured.ranges, rows, len(measured.sites)))
    return tables


def amount(number: float, unit: str = "") -> str:
    """A number in three digits with a decimal prefix: 12_345_678 with unit "B" is "12.3 MB"."""
    prefixes = ["", "k", "M", "G", "T"]
    while number >= 999.5 and len(prefixes) > 1:
        number /= 1000
        prefixes.pop(0)
    return f"{number:.3g} {prefixes[0]}{unit}".strip()


def compact(value: Any) -> str:
    """A value of the settings, or a number, in few characters."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {compact(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(compact(item) for item in value) or "none"
    return str(value)


def _looks(data: ReportData, component: str) -> dict[str, tuple[str, Look | None]]:
    """Site -> its treatment in words and the colour of its bits."""
    return {site: (bits.label, Look(look_bits(bits.weight_bits), 0)) for site, bits in data.bit_map.get(component, {}).items()}


def _resource(name: str) -> str:
    return resources.files("dexport.exporter.report").joinpath(name).read_text(encoding="utf-8")
