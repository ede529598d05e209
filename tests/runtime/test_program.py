"""The sampling program: JSON in both directions, and every rule of the schema and of `check_program`."""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.errors import UserError
from dexport.runtime.manifest import Component, Port
from dexport.runtime.program import (
    Buffer,
    Combine,
    Draw,
    Index,
    Instruction,
    Linear,
    Program,
    Ref,
    Row,
    Rows,
    Run,
    Table,
    Term,
    parse_ref,
    parse_rows,
    program_from_json,
    program_to_json,
)
from dexport.runtime.program_check import check_program

X, EPS, COND, TIME = Ref("x"), Ref("eps"), Ref("cond"), Ref("time")
GUIDANCE = (Term(Ref("eps", 0, 2), Linear(1.0, {"guidance_scale": -1.0})), Term(Ref("eps", 1, 2), Linear(0.0, {"guidance_scale": 1.0})))


def program(**changes: Any) -> Program:
    """Two guided steps of a 2x2 latent, then a decoder."""
    steps = tuple(
        (
            Index(TIME, "times", step),
            Run("denoiser", {"latent": (X, X), "text": (COND,), "time": (TIME,)}, {"noise": (EPS,)}),
            Combine(X, (Term(X, 0.5), *GUIDANCE)),
        )
        for step in range(2)
    )
    base = Program(
        name="euler-2",
        scheduler="EulerDiscreteScheduler",
        steps=2,
        size=(16, 16),
        start_step=0,
        timesteps=(999.0, 499.5),
        parameters={"guidance_scale": 4.5},
        tables={"times": Table("float32", (2, 1, 1)), "weights": Table("float32", (1, 1, 2, 1))},
        buffers={
            "x": Buffer("float32", Rows(1, True), (4, 2, 2)),
            "eps": Buffer("float32", Rows(2, True), (4, 2, 2)),
            "cond": Buffer("float32", Rows(2, True), (7,)),
            "time": Buffer("float32", Rows(1), (1,)),
            "image": Buffer("float32", Rows(1, True), (3, 16, 16)),
        },
        request=("cond",),
        results=("image",),
        begin=(Draw(X), Combine(X, (Term(X, Row("weights", 0)),))),
        iterations=steps,
        end=(Run("decoder", {"latent": (X,)}, {"image": (Ref("image"),)}),),
    )
    return replace(base, **changes)


COMPONENTS = {
    "denoiser": Component(
        inputs={
            "latent": Port(dtype="float32", shape=("rows", 4, 2, 2)),
            "text": Port(dtype="float32", shape=("rows", 7)),
            "time": Port(dtype="float32", shape=(1, 1)),
        },
        outputs={"noise": Port(dtype="float32", shape=("rows", 4, 2, 2))},
        variants=(),
        parameters=0,
        weight_bytes=0,
        precision="fp32",
    ),
    "decoder": Component(
        inputs={"latent": Port(dtype="float32", shape=(3, 4, 2, 2))},
        outputs={"image": Port(dtype="float32", shape=(3, 3, 16, 16))},
        variants=(),
        parameters=0,
        weight_bytes=0,
        precision="fp32",
    ),
}


def test_json_reads_back_equal() -> None:
    assert program_from_json(program_to_json(program()).encode(), "p.json") == program()
    assert check_program(program()) is None


def test_fixed_component_shapes_say_the_batch() -> None:
    assert check_program(program(), COMPONENTS) == 3


@given(st.text(st.characters(codec="ascii"), min_size=1, max_size=6), st.integers(0, 20), st.integers(1, 20))
def test_refs_read_back_equal(name: str, part: int, parts: int) -> None:
    ref = Ref(name, part if parts > 1 else 0, parts)
    if not set(name) & set("[]"):
        assert parse_ref(str(ref)) == ref
    assert parse_rows(str(Rows(parts, True))) == Rows(parts, True)


def test_malformed_refs_and_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'x\[1\]' is not a buffer reference; write name or name\[part/parts\]"):
        parse_ref("x[1]")
    with pytest.raises(ValueError, match=r"'2\*rows' is not a number of rows; write an integer, batch or n\*batch"):
        parse_rows("2*rows")


def _changed(path: list[str | int], value: Any) -> bytes:
    document = json.loads(program_to_json(program()))
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema"], 0, r"p.json: schema: expected 1, got 0"),
        (["schema"], 2, r"p.json: expected program schema 1 or older, got schema 2; install a newer dexport to read it"),
        (["extra"], 1, r"p.json: expected only the keys schema, name, .*, got the key 'extra'"),
        (["steps"], 0, "p.json: steps: expected a number from 1, got 0"),
        (["steps"], 10**7, "p.json: steps: expected a number up to 10000, got 10000000"),
        (["steps"], 2.0, "p.json: steps: expected JSON of type integer, got 2.0"),
        (["size"], [16], r"p.json: size: expected \[height, width\] or .*, got a list of 1"),
        (["timesteps", 0], 1e300, r"p.json: timesteps.0: expected a number up to 1e\+30, got 1e\+300"),
        (["parameters", "guidance_scale"], True, "p.json: parameters.guidance_scale: expected JSON of type number, got True"),
        (["buffers", "x", "dtype"], "float128", "p.json: buffers.x.dtype: expected one of float32, float16, .*, got 'float128'"),
        (["buffers", "x", "shape"], ["rows", 4], r"p.json: buffers.x.shape.0: expected pattern .*batch.*, got 'rows'"),
        (["buffers", "x", "shape"], [1, "batch"], r"p.json: buffers.x.shape.1: expected JSON of type integer, got 'batch'"),
        (["buffers", "x", "shape"], [-1], r"p.json: buffers.x.shape.0: expected a number from 1, got -1"),
        (["buffers", "y\n"], {"dtype": "float32", "shape": [1]}, r"p.json: buffers: expected a name of letters, .*, got 'y\\n'"),
        (["begin", 0, "op"], "jump", r"p.json: begin.0.op: expected one of run, combine, noise, index, got 'jump'"),
        (["begin", 0, "seed"], 1, r"p.json: begin.0: expected only the keys op, out, got the key 'seed'"),
        (["begin", 0, "out"], "x[0/0]", r"p.json: begin.0.out: expected a buffer, or the k-th of n .*, got 'x\[0/0\]'"),
        (["begin", 1, "terms", 0, "scale"], {"table": "weights"}, r"p.json: begin.1.terms.0.scale: expected the key 'row', got none"),
        (["begin", 1, "terms", 0, "scale"], {"constant": 1}, r"p.json: begin.1.terms.0.scale: expected the key 'linear', got none"),
        (["begin", 1, "terms", 0, "scale"], "1", r"p.json: begin.1.terms.0.scale: expected JSON of type object, got '1'"),
        (["begin", 1, "terms"], [], r"p.json: begin.1.terms: expected at least 1 items, got a list of 0"),
        (["iterations", 1, 1, "inputs", "latent"], [], r"p.json: iterations.1.1.inputs.latent: expected at least 1 items"),
    ],
)
def test_the_schema_refuses_naming_the_place(path: list[str | int], value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        program_from_json(_changed(path, value), "p.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "p.json: expected well-formed JSON"),
        (b'{"steps": NaN}', "p.json: expected well-formed JSON in UTF-8, got the number NaN"),
        (b'{"steps": 1, "steps": 2}', "twice in one object"),
        (b"[" * 100_000, "p.json: expected well-formed JSON in UTF-8"),
        (b"\xff", "p.json: expected well-formed JSON in UTF-8"),
        (b"[]", "p.json: expected a sampling program, got a list of 0"),
        (b" " * (17 << 20), "p.json: expected at most 16777216 bytes of JSON, got 17825792 bytes"),
    ],
)
def test_hostile_text_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        program_from_json(text, "p.json")


def _with_step(*instructions: Instruction) -> dict[str, Any]:
    return {"iterations": (program().iterations[0], instructions)}


_BUFFERS = program().buffers
_DENOISE = program().iterations[0][1]
assert isinstance(_DENOISE, Run)

_RESULTS = {"request": ("cond", "more"), "results": ("image", "more")}
"""A second result, which the request fills."""

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"timesteps": (1.0,)}, "program 'euler-2': expected one timestep per iteration, got 1 timesteps for 2 iterations"),
    ({"start_step": 2}, "expected a start step below the 2 steps, got 2"),
    ({"request": ("cond", "mask")}, "expected one of the buffers cond, eps, image, time, x, got 'mask'"),
    ({"results": ("image", "video")}, "expected one of the buffers .*, got 'video'"),
    ({"results": ()}, "program 'euler-2': expected at least one result, got none"),
    (
        {"buffers": {**_BUFFERS, "more": Buffer("float32", Rows(1, True), (3, 16, 17))}, **_RESULTS},
        r"alike but for their frames, got 'image' of float32, shape \[batch, 3, 16, 16\] and 'more' of float32, shape \[batch, 3, 16, 17\]",
    ),
    (
        {"buffers": {**_BUFFERS, "more": Buffer("float32", Rows(2, True), (3, 16, 16))}, **_RESULTS},
        r"'more' of float32, shape \[2\*batch, 3",
    ),
    ({"buffers": {**_BUFFERS, "more": Buffer("uint8", Rows(1, True), (3, 16, 16))}, **_RESULTS}, "'more' of uint8, shape"),
    ({"buffers": {**_BUFFERS, "more": Buffer("float32", Rows(1, True), (1, 2, 3, 16, 16))}, **_RESULTS}, "alike but for their frames"),
    ({"end": ()}, "program 'euler-2': expected the result 'image' to be written, got it is not"),
    ({"begin": ()}, r"iterations\[0\]\[1\]: expected 'x' to be written before it is read, got no earlier instruction does"),
    ({"buffers": {**_BUFFERS, "big": Buffer("float32", Rows(2**31 - 1), (5,))}}, "buffer 'big': expected at most 8589934592 elements"),
    ({"tables": {**program().tables, "big": Table("float32", (2**31 - 1, 5))}}, "table 'big': expected at most 8589934592 elements"),
    (_with_step(Draw(Ref("nowhere"))), r"iterations\[1\]\[0\]: expected one of the buffers .*, got 'nowhere'"),
    (_with_step(Draw(Ref("x", 0, 2))), r"expected a legal part of the batch rows of 'x', got 'x\[0/2\]'"),
    (_with_step(Draw(Ref("eps", 2, 2))), r"expected a legal part of the 2\*batch rows of 'eps', got 'eps\[2/2\]'"),
    (
        {"begin": (Draw(X), Draw(Ref("eps", 0, 2))), "iterations": ((Combine(X, (Term(Ref("eps", 1, 2), 1.0),)),), ())},
        r"expected 'eps\[1/2\]' to be written before it is read",
    ),
    (
        _with_step(Combine(X, (Term(EPS, 1.0),))),
        r"expected 'eps' to have the shape of 'x', shape \[batch, 4, 2, 2\], got shape \[2\*batch, 4",
    ),
    (_with_step(Combine(X, (Term(X, Linear(0.0, {"eta": 1.0})),))), "expected one of the parameters guidance_scale, got 'eta'"),
    (_with_step(Combine(X, (Term(X, Row("none", 0)),))), "expected one of the tables times, weights, got 'none'"),
    (_with_step(Combine(X, (Term(X, Row("weights", 1)),))), "expected a row below 1 of table 'weights', got 1"),
    (
        {**_with_step(Combine(X, (Term(X, Row("weights", 0)),))), "tables": {**program().tables, "weights": Table("float32", (1, 3, 1))}},
        r"begin\[1\]: expected a row of table 'weights' to broadcast to 'x', shape \[batch, 4, 2, 2\], got row of shape \[3, 1\]",
    ),
    (
        {"tables": {**program().tables, "weights": Table("int64", (1, 1, 2, 1))}},
        "expected table 'weights' to hold floats, got int64",
    ),
    (
        {"tables": {**program().tables, "times": Table("int64", (2, 1, 1))}},
        "expected table 'times' to have the dtype of 'time', float32, got int64",
    ),
    ({"buffers": {**_BUFFERS, "x": Buffer("int64", Rows(1, True), (4, 2, 2))}}, r"begin\[0\]: expected 'x' to hold floats, got int64"),
    ({"buffers": {**_BUFFERS, "x": Buffer("float16", Rows(1, True), (4, 2, 2))}}, "expected noise in a float32 buffer, got float16"),
    (
        _with_step(replace(_DENOISE, inputs={**_DENOISE.inputs, "text": (COND, X)})),
        r"component 'denoiser', port 'text': expected refs of one dtype and shape .*, got float32 \[4, 2, 2\] and float32 \[7\]",
    ),
    (
        _with_step(replace(_DENOISE, outputs={"noise": (EPS, X)})),
        "expected parts of equal rows for output 'noise' of 'denoiser', got eps, x",
    ),
    (_with_step(replace(_DENOISE, component="unet")), "expected one of the components decoder, denoiser, got 'unet'"),
    (
        _with_step(replace(_DENOISE, inputs={"latent": (X, X)})),
        "expected the inputs latent, text, time of component 'denoiser', got latent",
    ),
    (
        _with_step(replace(_DENOISE, inputs={**_DENOISE.inputs, "latent": (X,)})),
        r"component 'denoiser', port 'text': expected shape \['rows', 7\], got shape \[2\*batch, 7\]",
    ),
    (
        {"end": (*program().end, Run("decoder", {"latent": (Ref("eps"),)}, {"image": (Ref("image"),)}))},
        r"end\[1\], component 'decoder', port 'latent': expected shape \[3, 4, 2, 2\], got shape \[2\*batch, 4, 2, 2\]",
    ),
    (
        {"buffers": {**_BUFFERS, "cond": Buffer("float16", Rows(2, True), (7,))}},
        "component 'denoiser', port 'text': expected float32, got float16",
    ),
    (
        {
            "buffers": {**_BUFFERS, "one": Buffer("float32", Rows(1), (7,))},
            "request": ("cond", "one"),
            **_with_step(replace(_DENOISE, inputs={**_DENOISE.inputs, "text": (COND, Ref("one"))})),
        },
        r"expected refs whose rows all follow the batch, or none, got 'cond' with 2\*batch, 'one' with 1",
    ),
]


def test_results_may_differ_in_their_frames() -> None:
    video = Buffer("float32", Rows(1, True), (8, 3, 16, 16))
    assert check_program(program(buffers={**_BUFFERS, "more": video}, **_RESULTS), COMPONENTS) == 3


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=range(len(WRONG)))
def test_check_refuses_naming_the_instruction(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_program(program(**changes), COMPONENTS)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def _places(node: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, child in children for place in _places(child, (*path, key)))]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_single_change_is_read_or_refused(data: st.DataObject) -> None:
    places = _places(json.loads(program_to_json(program())))[1:]
    text = _changed(list(data.draw(st.sampled_from(places))), data.draw(_VALUES))
    with suppress(UserError):
        check_program(program_from_json(text, "p.json"), COMPONENTS)
