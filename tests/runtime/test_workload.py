"""The file that estimates of bundles are made of: round trip, hostile content, memory of a small program by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dexport.errors import UserError
from dexport.runtime.bundle import Bundle, open_bundle
from dexport.runtime.program import Buffer, Combine, Program, Ref, Rows, Run, Table, Term
from dexport.runtime.workload import WORKLOAD, Load, bundle_estimate, call_sizes, calls, estimate, load, workload_json
from dexport.targets.catalogue import find
from dexport.targets.latency import Work, milliseconds

PRODUCT = Work("a layer", "product", 2e12, 1e6, "fp16")
SHAPES = {"encoder": {"ids": ("batch", 8)}, "denoiser": {"x": ("batch", 4), "row": (1, 4)}}


def program(steps: int = 2) -> Program:
    """Encode, so many steps with two rows per picture, one sum."""
    encode = Run("encoder", {"ids": (Ref("ids"),)}, {"text": (Ref("text"),)})
    call = Run("denoiser", {"x": (Ref("x"), Ref("x")), "row": (Ref("text"),)}, {"y": (Ref("y"),)})
    add = Combine(Ref("x"), (Term(Ref("x"), 1.0), Term(Ref("y", 0, 2), 1.0)))
    buffers = {
        "ids": Buffer("int64", Rows(1, per_batch=True), (8,)),
        "text": Buffer("float32", Rows(1), (4,)),
        "x": Buffer("float32", Rows(1, per_batch=True), (4,)),
        "y": Buffer("float32", Rows(2, per_batch=True), (4,)),
    }
    return Program(
        name="p",
        scheduler="s",
        steps=steps,
        size=(16, 16),
        start_step=0,
        timesteps=(1.0,) * steps,
        parameters={},
        tables={"t": Table("float32", (steps, 3))},
        buffers=buffers,
        request=("ids",),
        results=("x",),
        begin=(encode,),
        iterations=((call, add),) * steps,
        end=(),
    )


def loads(batch: int, steps: int = 2) -> list[Load]:
    sizes = calls(program(steps).instructions(), program(steps), SHAPES, batch)
    return [load(name, (16, 16), key, 1000 if name == "denoiser" else 10, [PRODUCT, PRODUCT]) for name, key in sizes]


def test_rows_of_calls() -> None:
    steps = program()
    (encode,), ((call, _), *_) = steps.begin, steps.iterations
    assert isinstance(encode, Run) and isinstance(call, Run)
    assert call_sizes(steps, encode, SHAPES, 3) == (("batch", 3), ("steps", 2))
    assert call_sizes(steps, call, SHAPES, 3) == (("batch", 6), ("steps", 2))
    counts = calls(steps.instructions(), steps, SHAPES, 3)
    assert {name: count for (name, _), count in counts.items()} == {"encoder": 1, "denoiser": 2}


def test_an_estimate_by_hand() -> None:
    target = find("h100")
    found = estimate(program(), SHAPES, {"encoder": (9, {"fp16": 500}), "denoiser": (7, {"int8": 400})}, loads(1), target, 1)
    each = 2 * milliseconds(PRODUCT, target)
    assert found.step_milliseconds == pytest.approx(each) and found.milliseconds == pytest.approx(3 * each)
    tables, ids, text, x, y = 4 * 2 * 3, 8 * 8, 4 * 4, 4 * 4, 2 * 4 * 4
    assert found.buffer_bytes == tables + max(ids + text, text + x + y)
    assert found.together_bytes == 900 + 1000 + tables + text + x + y
    assert found.in_turn_bytes == 400 + 1000 + tables + text + x + y
    assert [(part.name, part.calls, part.arena_bytes) for part in found.parts] == [("encoder", 1, 10), ("denoiser", 2, 1000)]


def test_equal_operations_are_counted() -> None:
    (first, _) = loads(1)
    assert first.work == ((2, Work("", "product", 2e12, 1e6, "fp16")),)
    document = json.loads(workload_json([first]))
    assert document[0]["work"] == [[2, "product", 2e12, 1e6, "fp16"]]


def test_a_bundle_says_what_its_runs_take(pixart_cpu: Path) -> None:
    """Of a processor the bytes only; on another device the time as well, as the same workload asks for."""
    bundle = open_bundle(pixart_cpu, verify="sizes")
    entry = bundle.manifest.programs[0]
    own, other = bundle_estimate(bundle, entry), bundle_estimate(bundle, entry, find("rtx-4090"))
    assert own is not None and other is not None
    assert own.milliseconds is None and own.together_bytes == other.together_bytes > 0
    assert other.milliseconds is not None and other.milliseconds > 20 * (other.step_milliseconds or 0) > 0
    assert {part.name: part.weight_bytes for part in own.parts} == {n: c.weight_bytes for n, c in bundle.manifest.components.items()}
    assert own.pictures == bundle.manifest.batch == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: {},
        lambda document: document[1:],
        lambda document: [{**document[0], "size": 3}, *document[1:]],
        lambda document: [{**document[0], "work": [[1, "magic", 1, 1, "fp16"]]}, *document[1:]],
        lambda document: [{**document[0], "work": [[1, "product", 1, 1, "fp128"]]}, *document[1:]],
        lambda document: [{**document[0], "work": [[1, "product", -1, 1, "fp16"]]}, *document[1:]],
        lambda document: [{**document[0], "work": [[1]]}, *document[1:]],
        lambda document: [{"component": "vae"}],
    ],
)
def test_a_malformed_file_is_refused(spoil: Callable[[Any], Any], pixart_cpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(pixart_cpu, verify="sizes")
    document = spoil(json.loads(bundle.read_bytes(WORKLOAD)))
    read = Bundle.read_bytes

    def spoiled(self: Bundle, relative: str) -> bytes:
        return json.dumps(document).encode() if relative == WORKLOAD else read(self, relative)

    monkeypatch.setattr(Bundle, "read_bytes", spoiled)
    with pytest.raises(UserError, match=r"workload\.json: expected the calls of every component"):
        bundle_estimate(bundle, bundle.manifest.programs[0])
