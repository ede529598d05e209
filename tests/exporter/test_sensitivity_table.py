"""The table of sensitivities: means over steps, what the report gets, the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dexport.errors import Failure, UserError
from dexport.exporter.sensitivity_table import SensitivityTable, load_table, resumed, save_table

TABLE = SensitivityTable(
    component="denoiser",
    metric="end-to-end",
    measure="picture",
    ranges=((0, 4), (5, 6)),
    units={"a": ("a",), "b": ("b", "c")},
    identity={"model": "abc", "seeds": [0, 1]},
    harms={"a": {"w4": {"picture": (0.5,), "output": (1.0, 8.0)}, "w8": {"picture": (0.0,), "output": (0.1, 0.1)}}},
)


def test_means_go_by_the_length_of_the_ranges() -> None:
    assert TABLE.harm("a", "w4", "output") == pytest.approx((5 * 1.0 + 2 * 8.0) / 7)
    assert TABLE.harm("a", "w4", "picture") == 0.5


def test_what_the_report_gets() -> None:
    shown = TABLE.for_report("w4", "output")
    assert shown.sites == {"a": (1.0, 8.0)}
    assert shown.ranges == ("steps 1-5", "steps 6-7")
    assert shown.metric == "w4: noise over signal of the denoiser's output, guidance applied"
    assert TABLE.for_report("w4").ranges == ("whole run",)
    assert TABLE.for_report("w6").sites == {}


def test_a_table_grows_and_is_written_and_read(tmp_path: Path) -> None:
    grown = TABLE.with_harms("b", "w4", {"picture": (2.0,)})
    assert grown.has("b", "w4") and not grown.has("b", "w8") and not TABLE.has("b", "w4")
    assert grown.choices() == ("w4", "w8")
    path = tmp_path / "s.json"
    save_table(grown, path)
    assert load_table(path) == grown
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.json"]
    empty = replace(TABLE, harms={})
    assert resumed(empty, path) == grown
    assert resumed(empty, tmp_path / "none.json") == empty


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"identity": {"model": "abd", "seeds": [0, 1]}}, "sensitivities with model abd, got abc"),
        ({"units": {"a": ("a",)}}, "sensitivities with units"),
        ({"ranges": ((0, 6),)}, "sensitivities with ranges"),
    ],
)
def test_a_file_of_another_measurement_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    save_table(TABLE, tmp_path / "s.json")
    with pytest.raises(UserError, match=words):
        resumed(replace(TABLE, **change), tmp_path / "s.json")  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 1}', "\x00", json.dumps({"version": 1, "harms": {"a": 3}})])
def test_something_else_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(content)
    with pytest.raises(UserError, match="a file of `dexport sensitivity`"):
        load_table(path)
    with pytest.raises(UserError, match="no such file"):
        load_table(tmp_path / "none.json")


def test_another_version_and_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    save_table(TABLE, path)
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(UserError, match="version 1"):
        load_table(path)
    with pytest.raises(Failure, match="to be written"):
        save_table(TABLE, tmp_path / "none" / "s.json")
