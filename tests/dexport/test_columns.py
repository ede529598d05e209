"""Columns line up and amounts have three digits."""

import pytest

from dexport.columns import amount, columns


def test_cells_line_up_and_lines_end_without_blanks() -> None:
    assert columns([("a", "bb", "c"), ("aaa", "b", "")], indent="> ") == ["> a    bb  c", "> aaa  b"]


def test_no_rows_and_short_rows() -> None:
    assert columns([]) == []
    assert columns([("a",), ("bbb", "c")]) == ["a", "bbb  c"]


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (0, "B", "0 B"),
        (999, "B", "999 B"),
        (1000, "B", "1 kB"),
        (12_345_678, "B", "12.3 MB"),
        (999_600, "", "1 M"),
        (610e6, "", "610 M"),
        (5e15, "B", "5e+03 TB"),
    ],
)
def test_amounts(number: float, unit: str, text: str) -> None:
    assert amount(number, unit) == text
