"""What a user asks for, row by row: unconditional rows first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dexport.errors import UserError
from dexport.runtime.manifest import RequestBuffer
from dexport.runtime.program import Buffer, Program, Rows
from dexport.runtime.request import Asked, request_buffers
from dexport.runtime.text import Tokens

TEXT: dict[str, Any] = {"name": "t5", "outputs": {"ids": "ids", "mask": "mask"}}
CLASS = RequestBuffer(buffer="label", source="class", parameter=None, negative=1000.0)
SCALE = RequestBuffer(buffer="scale", source="parameter", parameter="guidance_scale", negative=0.0)
GIVEN = RequestBuffer(buffer="given", source="given", parameter=None, negative=0.0)
SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "ids": ("int64", (3,)),
    "mask": ("int64", (3,)),
    "label": ("int64", ()),
    "scale": ("float32", ()),
    "given": ("float32", ()),
}


def _program(names: Sequence[str], guided: bool) -> Program:
    rows = Rows(2 if guided else 1, per_batch=True)
    return Program(
        name="p",
        scheduler="DDIM",
        steps=1,
        size=(8, 8),
        start_step=0,
        timesteps=(),
        parameters={},
        tables={},
        buffers={name: Buffer(SHAPES[name][0], rows, SHAPES[name][1]) for name in names},
        request=tuple(names),
        results=(),
        begin=(),
        iterations=(),
        end=(),
    )


def _tokens(name: str, prompts: Sequence[str]) -> Tokens:
    """The length of each prompt, three times."""
    ids = np.array([[len(prompt)] * 3 for prompt in prompts], np.int64)
    return Tokens(ids, np.minimum(ids, 1))


def _buffers(
    texts: Sequence[dict[str, Any]], requests: Sequence[RequestBuffer], names: Sequence[str], guided: bool, batch: int, **asked: Any
) -> dict[str, list[Any]]:
    everything = Asked(**{"prompts": None, "negative_prompts": None, "class_labels": None, "parameters": {}, **asked})
    found = request_buffers(texts, requests, _program(names, guided), guided, everything, batch, _tokens)
    assert {name: array.dtype.name for name, array in found.items()} == {name: SHAPES[name][0] for name in names}
    return {name: array.tolist() for name, array in found.items()}


@pytest.mark.parametrize(
    ("guided", "negative", "lengths"), [(False, None, [1, 2]), (True, None, [0, 0, 1, 2]), (True, ["abc", "abcd"], [3, 4, 1, 2])]
)
def test_token_ids(guided: bool, negative: list[str] | None, lengths: list[int]) -> None:
    found = _buffers([TEXT], [], ["ids", "mask"], guided, 2, prompts=["a", "ab"], negative_prompts=negative)
    assert found == {"ids": [[n] * 3 for n in lengths], "mask": [[min(n, 1)] * 3 for n in lengths]}


def test_class_labels_have_their_own_negative() -> None:
    assert _buffers([], [CLASS], ["label"], True, 2, class_labels=[7, 8]) == {"label": [1000, 1000, 7, 8]}
    assert _buffers([], [CLASS], ["label"], False, 2, class_labels=[7, 8]) == {"label": [7, 8]}


def test_parameters_and_what_was_given() -> None:
    asked: dict[str, Any] = {"prompts": ["a"], "parameters": {"guidance_scale": 3.5}}
    assert _buffers([TEXT], [SCALE, GIVEN], ["scale", "given"], True, 1, **asked) == {"scale": [3.5, 3.5], "given": [0, 1]}
    assert _buffers([TEXT], [GIVEN], ["given"], True, 1, **asked, negative_prompts=["b"]) == {"given": [1, 1]}
    assert _buffers([TEXT], [SCALE, GIVEN], ["scale"], False, 1, **asked) == {"scale": [3.5]}


@pytest.mark.parametrize(
    ("texts", "requests", "asked", "message"),
    [
        ([TEXT], [], {}, "prompt: expected a text, got none; give --prompt"),
        (
            [],
            [CLASS],
            {"prompts": ["a"]},
            "prompt: expected none, as this model takes class labels, got a text; give --class-label",
        ),
        ([], [CLASS], {}, "class label: expected a number, got none; give --class-label"),
        ([TEXT], [], {"prompts": ["a"], "class_labels": [1]}, "class label: expected none, as this model takes prompts, got a number"),
    ],
)
def test_a_condition_that_does_not_fit_is_refused(
    texts: list[dict[str, Any]], requests: list[RequestBuffer], asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        _buffers(texts, requests, [], False, 1, **asked)


def test_buffers_take_the_place_of_prompts_and_labels() -> None:
    ids, mask = np.array([[1, 2, 3]]), np.ones((1, 3), np.int64)
    both: dict[str, Any] = {"ids": ids, "mask": mask}
    assert _buffers([TEXT], [], ["ids", "mask"], False, 1, buffers=both) == {"ids": [[1, 2, 3]], "mask": [[1, 1, 1]]}
    assert _buffers([TEXT], [], ["ids", "mask"], False, 1, prompts=["a"], buffers={"ids": ids}) == {"ids": [[1, 2, 3]], "mask": [[1] * 3]}
    assert _buffers([TEXT], [SCALE], ["scale"], False, 1, buffers={"scale": np.ones(1, np.float32)}) == {"scale": [1]}
    assert _buffers([], [CLASS], ["label"], False, 1, buffers={"label": np.array([4])}) == {"label": [4]}


def test_what_is_computed_of_a_prompt_or_label_takes_its_place() -> None:
    """Then `with_given` has left their buffers out of the program."""
    embeds: dict[str, Any] = {"scale": np.ones(1, np.float32)}
    assert _buffers([TEXT], [], ["scale"], False, 1, buffers=embeds) == {"scale": [1]}
    assert _buffers([], [CLASS], ["scale"], False, 1, buffers=embeds) == {"scale": [1]}


@pytest.mark.parametrize(
    ("buffers", "prompts", "message"),
    [
        (
            {"ids": np.ones((1, 3), np.int64)},
            None,
            "prompt: expected a text, or the buffers mask too, got neither; give one of them",
        ),
        (
            {"ids": np.ones((1, 3), np.int64), "mask": np.ones((1, 3), np.int64)},
            ["a"],
            "prompt: expected none, as buffers take its place, got a text; leave one of them out",
        ),
        (
            {"ids": np.ones((2, 3), np.int64)},
            ["a"],
            r"request 'ids': expected int64 \[1, 3\], got int64 \[2, 3\]; give an array of that dtype and shape",
        ),
        ({"ids": np.ones((1, 3), np.float32)}, ["a"], r"request 'ids': expected int64 \[1, 3\], got float32 \[1, 3\]"),
        ({"idz": np.ones(1)}, ["a"], "buffers: expected one of the inputs ids, mask, got 'idz'; leave it out"),
    ],
)
def test_buffers_that_do_not_fit_are_refused(buffers: dict[str, Any], prompts: list[str] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _buffers([TEXT], [], ["ids", "mask"], False, 1, prompts=prompts, buffers=buffers)
