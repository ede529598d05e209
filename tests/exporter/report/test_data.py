"""Report data as JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dexport.errors import UserError
from dexport.exporter.quality import quality_from_json
from dexport.exporter.report.data import ReportData, average_bits, pairs_of, report_to_json
from tests.exporter.report.samples import full, pictures, sites


def test_all_but_the_pixels_is_in_the_json() -> None:
    document = json.loads(json.dumps(report_to_json(full()), allow_nan=False))
    assert set(document) == {*ReportData.__dataclass_fields__, "average_bits"}
    assert quality_from_json(document["quality"], "x") == full().quality
    assert document["sensitivity"]["denoiser"]["ranges"] == ["steps 1-10", "steps 11-20"]
    assert document["weight_bytes"]["denoiser"] == {"before": 1_200_000_000, "after": 330_000_000}
    assert document["degraded"][0]["reason"].startswith("this target")


def test_numbers_of_numpy_become_plain() -> None:
    data = ReportData(title="t", reference="r", candidate="c", created="now", settings={"a": np.float32(0.5), "b": [np.int64(3)]})
    assert json.loads(json.dumps(report_to_json(data)))["settings"] == {"a": 0.5, "b": [3]}


def test_average_bits_weigh_by_parameters() -> None:
    assert average_bits(sites()) == pytest.approx((56 * 4250 + 56 * 8030 + 8000) / 112_500)
    assert average_bits({}) == 0


def test_pairs_need_equal_shapes() -> None:
    with pytest.raises(UserError, match="the same number, size and frames"):
        pairs_of(["a"], [0], pictures(1, 16, 16), pictures(1, 16, 24))
