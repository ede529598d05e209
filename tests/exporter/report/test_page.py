"""What the page says: every section where there is data, none where there is not, and nothing of the user's as markup."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
from pathlib import Path

import pytest

from dexport.exporter.report.data import Remark, ReportData, SiteBits
from dexport.exporter.report.page import amount, compact, grouped, headlines, report_page, sensitivity, write_report
from tests.exporter.report.samples import full, pairs

EMPTY = ReportData(title="t", reference="r", candidate="c", created="now")
SECTIONS = ["pictures", "drift", "bits", "sensitivity", "bytes", "kernels", "latency", "degraded", "skipped", "settings"]


def _sections(page: str) -> list[str]:
    return re.findall(r'<section id="(\w+)">', page)


class _Balance(html.parser.HTMLParser):
    """Every element that is opened is closed, in order."""

    void = {"meta", "link", "img", "br", "line", "circle", "path"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def test_every_section_is_there_once_and_well_formed() -> None:
    page = report_page(full())
    assert _sections(page) == SECTIONS
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []


def test_sections_without_data_are_absent() -> None:
    assert _sections(report_page(EMPTY)) == []
    only_bits = dataclasses.replace(EMPTY, bit_map=full().bit_map)
    assert _sections(report_page(only_bits)) == ["bits"]
    without_score = full().quality
    assert without_score is not None
    quality = dataclasses.replace(without_score, score=None, latent_cosine=(), latent_snr=())
    assert [item.name for item in headlines(dataclasses.replace(EMPTY, quality=quality))] == ["PSNR", "SSIM"]


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_executed() -> None:
    page = report_page(full())
    assert "<script" not in page and "http:" not in page and "https:" not in page
    assert {source[:11] for source in re.findall(r'src="([^"]+)"', page)} == {"data:image/"}


def test_text_of_the_user_is_never_markup() -> None:
    bad = '<img src=x onerror="alert(1)">'
    pair = dataclasses.replace(pairs(1, 16, 16)[0], prompt=bad)
    sites = {bad: SiteBits(weights=bad, weight_bits=4, activations=bad, mode=bad, parameters=1)}
    data = dataclasses.replace(
        full(),
        title=bad,
        notes=(bad,),
        pairs=(pair,),
        bit_map={bad: sites},
        degraded=(Remark(bad, bad, bad),),
        command=bad,
        settings={bad: bad},
    )
    page = report_page(data)
    assert bad not in page and page.count("&lt;img src=x") >= 8


def test_headlines_are_the_figures() -> None:
    quality = full().quality
    assert quality is not None and quality.score is not None
    found = {item.name: item for item in headlines(full())}
    assert list(found) == ["PSNR", "SSIM", "Score", "Latent cosine", "Bits per weight", "Weights", "Time"]
    assert found["PSNR"].figure == f"{quality.psnr.median:.1f} dB" and f"{quality.psnr.p10:.1f} dB" in found["PSNR"].detail
    assert f"{quality.score.low:+.4f} to {quality.score.high:+.4f}" in found["Score"].detail
    # 28 blocks with two sites of 4.25 and two of 8.03 bits, 1000 weights each, and 500 weights of 16 bits
    assert found["Bits per weight"].figure == f"{(56 * 4250 + 56 * 8030 + 8000) / 112500:.2f}"
    assert (found["Weights"].figure, found["Weights"].detail) == ("2.73 GB", "of 10.7 GB: 3.9 times smaller")
    assert found["Time"].figure == "1248 ms"


def test_remarks_share_their_reason() -> None:
    remarks = [Remark("a", "x", "why"), Remark("b", "y", "why"), Remark("a", "z", "why"), Remark("b", "", "all of it")]
    assert [(g.component, g.reason, g.sites) for g in grouped(remarks)] == [
        ("a", "why", ("x", "z")),
        ("b", "why", ("y",)),
        ("b", "all of it", ()),
    ]


def test_the_most_sensitive_sites_come_first_with_their_bits() -> None:
    (table,) = sensitivity(full())
    assert (len(table.sites), table.total) == (20, 113)
    values = [row.value for row in table.sites]
    assert values == sorted(values, reverse=True) and table.sites[0].value == pytest.approx(0.112)
    assert max(table.sites[0].shares) == 1 and all(0 <= share <= 1 for row in table.sites for share in row.shares)
    assert table.sites[0].site == "proj_out" and table.sites[0].bits == "kept in fp16"


def test_pictures_that_were_reduced_say_so() -> None:
    page = report_page(dataclasses.replace(EMPTY, pairs=pairs(2, 800, 600)))
    assert page.count("shown reduced from 600x800") == 2 and len(page) < 3_000_000
    assert "shown reduced" not in report_page(dataclasses.replace(EMPTY, pairs=pairs(2, 16, 16)))


def test_the_files_of_a_report(tmp_path: Path) -> None:
    write_report(full(), tmp_path / "report")
    document = json.loads((tmp_path / "report/report.json").read_text())
    assert document["title"] == full().title and document["quality"]["pictures"] == 10
    assert document["pairs"][3] == {
        "prompt": "a prompt with number 3",
        "seed": 3,
        "psnr": full().pairs[3].psnr,
        "ssim": full().pairs[3].ssim,
    }
    assert document["bit_map"]["denoiser"]["proj_out"]["weights"] == "fp16"
    assert document["average_bits"]["text_encoder"] == 16
    assert (tmp_path / "report/index.html").read_text(encoding="utf-8") == report_page(full())


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "yes"), (None, "none"), ([], "none"), ([1, 2.5], "1, 2.5"), ({"a": 1e-7}, "a 1e-07"), (123456.7, "123457"), ("x", "x")],
)
def test_values_are_shown_in_few_characters(value: object, text: str) -> None:
    assert compact(value) == text


def test_amounts_have_three_digits() -> None:
    assert (amount(12_345_678, "B"), amount(999_600), amount(5, "B")) == ("12.3 MB", "1 M", "5 B")
