"""A report goes into a bundle and comes out of it; what the build wrote stays."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from dexport.errors import UserError
from dexport.exporter.quality import quality_to_json
from dexport.exporter.report.data import ReportData, report_to_json
from dexport.exporter.report.page import report_page
from dexport.exporter.report.stored import attach_report, with_stored
from dexport.runtime.bundle import open_bundle
from dexport.runtime.bundle_writer import BundleWriter
from tests.exporter.report.samples import full
from tests.runtime.sample_bundle import sample_files, sample_manifest, write_sample

OF_A_COMPARISON = ReportData(title="t", reference="r", candidate="c", created="now", quality=full().quality)


@pytest.mark.parametrize("name", ["bundle", "bundle.dxb"])
def test_a_bundle_gets_the_report_and_keeps_everything_else(name: str, tmp_path: Path) -> None:
    path = write_sample(tmp_path / name)
    attach_report(path, full())
    bundle = open_bundle(path, verify="full")
    assert bundle.manifest.report == "report/index.html"
    assert bundle.read_bytes("report/index.html").decode() == report_page(full())
    assert full().quality is not None and bundle.manifest.quality == quality_to_json(full().quality)
    kept = {relative: content for relative, content in sample_files().items() if not relative.startswith("report/")}
    assert set(bundle.manifest.files) == {*kept, "report/index.html", "report/report.json"}
    trusting = open_bundle(path, trust=True)
    assert all(trusting.read_bytes(relative) == content for relative, content in kept.items())
    plain = dataclasses.replace(bundle.manifest, quality=None, report=None, files={})
    assert plain == sample_manifest()
    assert os.listdir(tmp_path) == [name]


def test_what_the_build_wrote_is_shown_with_a_new_comparison(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "bundle")
    assert with_stored(OF_A_COMPARISON, open_bundle(path)) is OF_A_COMPARISON, "there is no report yet"
    attach_report(path, full())
    both = with_stored(OF_A_COMPARISON, open_bundle(path))
    for field in ("bit_map", "sensitivity", "skipped", "degraded", "latency_ms"):
        assert getattr(both, field) == getattr(full(), field), field
    assert (both.title, both.quality, both.pairs) == ("t", full().quality, ())
    attach_report(path, both)
    assert with_stored(OF_A_COMPARISON, open_bundle(path)) == both


@pytest.mark.parametrize("change", [{"bit_map": 3}, {"skipped": [1]}, {"latency_ms": {"a": "fast"}}, {"sensitivity": {"a": {}}}])
def test_a_damaged_report_is_named(change: dict[str, object], tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "bundle") as writer:
        for relative, content in sample_files().items():
            target = writer.directory / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        (writer.directory / "report/report.json").write_text(json.dumps(report_to_json(full()) | change))
        path = writer.finish(sample_manifest())
    with pytest.raises(UserError, match=r"report/report\.json: expected a report of dexport"):
        with_stored(OF_A_COMPARISON, open_bundle(path))
