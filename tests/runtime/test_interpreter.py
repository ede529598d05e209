"""The interpreter: what the instructions mean, what memory it holds, and what it refuses."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dexport.errors import Failure, UserError
from dexport.runtime.interpreter import Array, Cancelled, run_program
from dexport.runtime.noise import GivenNoise, TorchNoise
from dexport.runtime.program import Buffer, Combine, Draw, Index, Instruction, Linear, Program, Ref, Row, Rows, Run, Table, Term
from dexport.runtime.program_check import check_program

X, EPS, COND, TIME, IMAGE = Ref("x"), Ref("eps"), Ref("cond"), Ref("time"), Ref("image")
SHAPE = (2, 3)
TABLES = {"times": np.array([[[0.5]], [[0.25]]], np.float32), "weights": np.array([[[1.0], [2.0]]], np.float32)}
GUIDANCE = (Term(Ref("eps", 0, 2), Linear(1.0, {"guidance": -1.0})), Term(Ref("eps", 1, 2), Linear(0.0, {"guidance": 1.0})))


def program(**changes: Any) -> Program:
    """Two guided steps, then a decoder."""
    steps = tuple(
        (
            Index(TIME, "times", step),
            Run("denoiser", {"latent": (X, X), "text": (Ref("cond", 0, 2), Ref("cond", 1, 2)), "time": (TIME,)}, {"noise": (EPS,)}),
            Combine(X, (Term(X, 0.5), *GUIDANCE)),
        )
        for step in range(2)
    )
    base = Program(
        name="toy",
        scheduler="Toy",
        steps=2,
        size=(8, 8),
        start_step=0,
        timesteps=(9.0, 4.0),
        parameters={"guidance": 3.0},
        tables={"times": Table("float32", (2, 1, 1)), "weights": Table("float32", (1, 2, 1))},
        buffers={
            "x": Buffer("float32", Rows(1, True), SHAPE),
            "eps": Buffer("float32", Rows(2, True), SHAPE),
            "cond": Buffer("float32", Rows(2, True), (1, 1)),
            "time": Buffer("float32", Rows(1), (1,)),
            "image": Buffer("float32", Rows(1, True), SHAPE),
        },
        request=("cond",),
        results=("image",),
        begin=(Draw(X), Combine(X, (Term(X, Row("weights", 0)),))),
        iterations=steps,
        end=(Run("decoder", {"latent": (X,)}, {"image": (IMAGE,)}),),
    )
    changed = replace(base, **changes)
    check_program(changed)
    return changed


def denoiser(inputs: dict[str, Array]) -> dict[str, Array]:
    return {"noise": np.tanh(inputs["latent"]) * inputs["text"] + inputs["time"].reshape(1, 1, 1)}


def decoder(inputs: dict[str, Array]) -> dict[str, Array]:
    return {"image": inputs["latent"] * np.float32(2.0)}


COMPONENTS = {"denoiser": denoiser, "decoder": decoder}


def cond(batch: int) -> Array:
    return np.arange(2 * batch, dtype=np.float32).reshape(-1, 1, 1)


def run(given: Program, **options: Any) -> dict[str, Array]:
    batch = options.pop("batch", 2)
    arguments: dict[str, Any] = {"parameters": {}, "noise": TorchNoise(0), "tables": TABLES, "batch": batch} | options
    components = arguments.pop("components", COMPONENTS)
    request = arguments.pop("request", {"cond": cond(batch)})
    return run_program(given, components, request, **arguments)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_guided_loop_computes_what_it_says(batch: int) -> None:
    text = cond(batch)
    x = TorchNoise(0).normal((batch, *SHAPE)) * TABLES["weights"][0]
    for time in (0.5, 0.25):
        eps = np.tanh(np.concatenate([x, x])) * text + np.float32(time)
        x = x * np.float32(0.5) + (1 - 2.0) * eps[:batch] + 2.0 * eps[batch:]
    out = run(program(), batch=batch, parameters={"guidance": 2.0})
    np.testing.assert_allclose(out["image"], 2 * x, rtol=1e-6, atol=1e-6)
    assert list(out) == ["image"]


COEFFICIENTS = st.floats(-4, 4, width=32)


@given(
    terms=st.lists(st.tuples(st.sampled_from(["x", "y"]), st.integers(0, 1), COEFFICIENTS), min_size=1, max_size=5),
    part=st.integers(0, 1),
    adopted=st.booleans(),
)
def test_combine_is_a_float32_sum_in_order_whatever_overlaps(terms: list[tuple[str, int, float]], part: int, adopted: bool) -> None:
    """`adopted` buffers belong to the request and must keep their numbers."""
    x, y = np.arange(8, dtype=np.float32).reshape(4, 2) / 3, np.ones((4, 2), np.float32)
    own: tuple[Instruction, ...] = () if adopted else (Combine(Ref("x"), (Term(Ref("x"), 1.0),)),)
    instruction = Combine(Ref("x", part, 2), tuple(Term(Ref(name, half, 2), scale) for name, half, scale in terms))
    buffers = {name: Buffer("float32", Rows(4), (2,)) for name in ("x", "y")}
    given_program = replace(
        program(), buffers=buffers, tables={}, request=("x", "y"), results=("x",), begin=(*own, instruction), iterations=((), ()), end=()
    )
    expected = x.copy()
    total = np.zeros((2, 2), np.float32)
    for index, (name, half, scale) in enumerate(terms):
        summand = {"x": x, "y": y}[name][2 * half : 2 * half + 2] * np.float32(scale)
        total = summand if index == 0 else total + summand
    expected[2 * part : 2 * part + 2] = total
    before = x.copy()
    out = run(given_program, request={"x": x, "y": y}, tables={}, batch=1)
    assert np.array_equal(out["x"], expected)
    assert np.array_equal(x, before)


def test_half_precision_buffers_are_summed_in_float32() -> None:
    buffers = {name: Buffer("float16", Rows(1), (1,)) for name in ("a", "b")}
    total = Combine(Ref("b"), tuple(Term(Ref("a"), 1.0) for _ in range(3)) + (Term(Ref("a"), -2.0),))
    given_program = replace(
        program(), buffers=buffers, tables={}, request=("a",), results=("b",), begin=(total,), iterations=((), ()), end=()
    )
    out = run(given_program, request={"a": np.array([[40_000]], np.float16)}, tables={}, batch=1)
    assert out["b"].dtype == np.float16
    assert out["b"][0, 0] == np.float16(40_000)


def test_steps_are_reported_with_live_buffers() -> None:
    seen: list[tuple[int, float, list[str]]] = []
    run(program(), on_step=lambda step, time, buffers: seen.append((step, time, sorted(buffers))))
    assert seen == [(0, 9.0, ["cond", "eps", "time", "x"]), (1, 4.0, ["x"])]


def test_components_are_released_after_their_last_use() -> None:
    events: list[str] = []
    components = {
        name: lambda inputs, name=name: (events.append(name), COMPONENTS[name](inputs))[1]  # type: ignore[misc]
        for name in COMPONENTS
    }
    run(program(), components=components, release=lambda name: events.append(f"release {name}"))
    assert events == ["denoiser", "denoiser", "release denoiser", "decoder", "release decoder"]


def test_unchanged_inputs_are_joined_once_and_whole_buffers_are_not_copied() -> None:
    texts: list[tuple[int, float]] = []
    latents: list[tuple[int, float]] = []

    def spy(inputs: dict[str, Array]) -> dict[str, Array]:
        texts.append((id(inputs["text"]), float(inputs["text"].sum())))
        latents.append((id(inputs["latent"]), float(inputs["latent"].sum())))
        return denoiser(inputs)

    whole: list[Array] = []

    def watch(_step: int, _time: float, buffers: Mapping[str, Array]) -> None:
        whole[:] = [buffers["x"]]

    def last(inputs: dict[str, Array]) -> dict[str, Array]:
        assert inputs["latent"] is whole[0]
        return decoder(inputs)

    run(program(), components={"denoiser": spy, "decoder": last}, on_step=watch)
    assert texts[0] == texts[1]
    assert latents[0][0] == latents[1][0], "the space of the joined latent is used again"
    assert latents[0][1] != latents[1][1]


def test_a_component_that_returns_its_input_does_not_tie_two_buffers() -> None:
    begin = (Draw(X), Combine(X, (Term(X, 1.0),)), Run("same", {"a": (X,)}, {"b": (IMAGE,)}), Combine(X, (Term(X, 0.0),)))
    given_program = replace(program(), begin=begin, iterations=((), ()), end=())
    out = run(given_program, components={"same": lambda inputs: {"b": inputs["a"]}})
    assert np.array_equal(out["image"], TorchNoise(0).normal((2, *SHAPE)))


def test_outputs_are_split_over_parts() -> None:
    begin = (Draw(X), Run("twice", {"a": (X,)}, {"b": (Ref("eps", 1, 2), Ref("eps", 0, 2))}))
    given_program = replace(program(), begin=begin, iterations=((), ()), end=(), results=("eps",))
    out = run(given_program, components={"twice": lambda inputs: {"b": np.concatenate([inputs["a"], 2 * inputs["a"]])}})
    noise = TorchNoise(0).normal((2, *SHAPE))
    assert np.array_equal(out["eps"], np.concatenate([2 * noise, noise]))


def test_table_rows_fill_buffers_with_and_without_broadcasting() -> None:
    begin = (Index(X, "weights", 0), Index(TIME, "times", 1))
    given_program = replace(program(), begin=begin, iterations=((), ()), end=(), results=("x", "time"))
    out = run(given_program)
    assert np.array_equal(out["x"], np.broadcast_to(TABLES["weights"][0], (2, *SHAPE)))
    assert np.array_equal(out["time"], [[0.25]])


def test_noise_is_drawn_in_program_order() -> None:
    draws = [np.full((1, *SHAPE), value, np.float32) for value in (1.0, 2.0)]
    begin = (Draw(X), Draw(IMAGE))
    out = run(replace(program(), begin=begin, iterations=((), ()), end=(), results=("x", "image")), noise=GivenNoise(draws), batch=1)
    assert out["x"].max() == 1
    assert out["image"].min() == 2


def test_cancelling_stops_before_the_next_instruction() -> None:
    calls: list[int] = []
    with pytest.raises(
        Cancelled, match=r"program 'toy', iterations\[0\]\[1\]: expected to run to the end, got a request to stop; run it again"
    ):
        run(program(), cancel=lambda: calls.append(1) is None and len(calls) > 3)
    assert issubclass(Cancelled, Failure)


def _denoiser_that_returns(array: Any, name: str = "noise") -> dict[str, Any]:
    return {"components": {"denoiser": lambda _: {name: array}, "decoder": decoder}}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch": 0}, UserError, "program 'toy': expected a batch of at least 1, got 0; ask for at least one picture"),
        ({"request": {}}, UserError, r"expected the request's buffers cond, got \(none\); fill exactly these"),
        (
            {"request": {"cond": cond(1)}},
            UserError,
            r"request 'cond': expected float32 \[4, 1, 1\], got float32 \[2, 1, 1\]; give an array",
        ),
        ({"tables": {}}, UserError, "expected table 'times', got none of that name; rebuild the bundle"),
        (
            {"tables": TABLES | {"times": TABLES["times"][:1]}},
            UserError,
            r"table 'times': expected float32 \[2, 1, 1\], got float32 \[1, 1, 1\]",
        ),
        ({"components": {"decoder": decoder}}, UserError, "expected component 'denoiser', got none of that name; rebuild"),
        ({"parameters": {"eta": 1.0}}, UserError, "expected one of the parameters guidance, got 'eta'; leave it out"),
        ({"parameters": {"guidance": float("nan")}}, UserError, "parameter 'guidance': expected a finite number, got nan; give a number"),
        (
            _denoiser_that_returns(1, "eps"),
            Failure,
            r"iterations\[0\]\[1\], component 'denoiser': expected outputs noise, got eps; rebuild",
        ),
        (
            _denoiser_that_returns(np.zeros((4, 2, 3))),
            Failure,
            r"component 'denoiser', output 'noise': expected float32 \[4, 2, 3\], got float64 \[4, 2, 3\]; rebuild the bundle",
        ),
        (
            _denoiser_that_returns(np.full((4, 2, 3), np.nan, np.float32)),
            Failure,
            r"iterations\[0\]\[1\], component 'denoiser', output 'noise': expected finite numbers, got 24 of 24 NaN or infinite",
        ),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(program(), **options)


def test_huge_finite_numbers_are_not_called_infinite() -> None:
    huge = np.full((4, *SHAPE), 3e38, np.float32)
    run(replace(program(), iterations=(program().iterations[0][:2], ())), **_denoiser_that_returns(huge))
