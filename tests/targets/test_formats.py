"""The table of formats covers every backend, and versions of TensorRT map to the opsets they document."""

import pytest

from dexport.targets.formats import FORMATS, PRECISIONS, RULES
from dexport.targets.tensorrt import dotted, last_opset


def test_every_backend_has_a_rule_with_a_reason_for_every_format() -> None:
    for rules in RULES.values():
        assert tuple(rules) == FORMATS
        assert all(rule.reason for rule in rules.values())
    assert set(PRECISIONS) <= set(FORMATS)


@pytest.mark.parametrize(
    ("version", "opset"), [((8, 6, 2), 17), ((10, 3, 0), 20), ((10, 7), 20), ((10, 9), 22), ((10, 13, 3), 24), ((11, 4, 1), 24)]
)
def test_last_opset(version: tuple[int, ...], opset: int) -> None:
    assert last_opset(version) == opset


def test_a_tensorrt_that_is_too_old_has_no_opset() -> None:
    with pytest.raises(ValueError, match=r"expected 8.5 or newer, got 7.2"):
        last_opset((7, 2))
    assert dotted((10, 3, 0)) == "10.3.0"
