"""Peaks, fits and times of an estimate, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dexport.targets.catalogue import find
from dexport.targets.estimate import Estimate, Moment, Part, counted_milliseconds, peaks
from dexport.targets.latency import Work, milliseconds

GIB = 2**30


def estimate(together: int, in_turn: int, target: str = "rtx-4090") -> Estimate:
    part = Part("denoiser", 10, {"fp16": 12, "int4": 3}, 7, 20, 1.5)
    return Estimate(find(target), (part,), 1, 20, 5, together, in_turn, 0.1, 2.0)


def test_components_are_freed_after_their_last_use() -> None:
    """Encoder 100, denoiser 50, decoder 10; only what is between first and last use counts in turn."""
    moments = [Moment("encoder", 5, 1), Moment("", 0, 2), Moment("denoiser", 30, 2), Moment("denoiser", 20, 2), Moment("decoder", 60, 3)]
    together, in_turn = peaks(moments, {"encoder": 100, "denoiser": 50, "decoder": 10})
    assert together == 160 + 60 + 3
    assert in_turn == 100 + 5 + 1
    back = [*moments, Moment("encoder", 0, 0)]
    assert peaks(back, {"encoder": 100, "denoiser": 50, "decoder": 10})[1] == 100 + 50 + 30 + 2


@pytest.mark.parametrize(
    ("together", "in_turn", "target", "fit"),
    [
        (22, 10, "rtx-4090", "together"),
        (24, 23, "rtx-4090", "in turn"),  # 24 GiB less 1 for the system
        (30, 24, "rtx-4090", "no"),
        (30, 24, "cpu", "unknown"),
    ],
)
def test_what_fits(together: int, in_turn: int, target: str, fit: str) -> None:
    assert estimate(together * GIB, in_turn * GIB, target).fit == fit


def test_the_keys_of_the_json_are_stable() -> None:
    document = estimate(23 * GIB, GIB).to_json()
    assert list(document) == [
        "target",
        "pictures",
        "steps",
        "components",
        "buffer_bytes",
        "peak_bytes",
        "memory_bytes",
        "system_bytes",
        "available_bytes",
        "fits",
        "step_ms",
        "ms",
        "latency_basis",
    ]
    assert document["components"] == [
        {
            "name": "denoiser",
            "parameters": 10,
            "weights": {"fp16": 12, "int4": 3},
            "weight_bytes": 15,
            "arena_bytes": 7,
            "calls": 20,
            "ms": 1.5,
        }
    ]
    assert (document["memory_bytes"], document["system_bytes"], document["available_bytes"]) == (24 * GIB, GIB, 23 * GIB)
    unknown = replace(estimate(1, 1, "cpu"), step_milliseconds=None).to_json()
    assert unknown["available_bytes"] is None and unknown["latency_basis"] == "its speed depends on the machine at hand"


def test_operations_are_counted() -> None:
    work = Work("", "product", 1e12, 1e6)
    target = find("h100")
    assert counted_milliseconds([(3, work), (1, work)], target) == pytest.approx(4 * milliseconds(work, target))
    assert counted_milliseconds([(3, work)], find("cpu")) is None
