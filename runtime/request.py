"""What a user asks for becomes the request buffers of a program: token ids, class labels, parameters, one row per picture and half."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dexport.errors import UserError
from dexport.runtime.manifest import JsonObject, RequestBuffer
from dexport.runtime.program import Program
from dexport.runtime.strict_json import names_text, shown
from dexport.runtime.text import Tokens

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Asked:
    """The conditions of one batch, one entry per picture; None where the user gave nothing.

    Attributes:
        buffers: what the caller has filled, such as token ids.
    """

    prompts: Sequence[str] | None
    negative_prompts: Sequence[str] | None
    class_labels: Sequence[int] | None
    parameters: Mapping[str, float]
    buffers: Mapping[str, Array] = field(default_factory=dict)


def request_buffers(
    texts: Sequence[JsonObject],
    requests: Sequence[RequestBuffer],
    program: Program,
    guided: bool,
    asked: Asked,
    batch: int,
    tokens: Callable[[str, Sequence[str]], Tokens],
) -> dict[str, Array]:
    """The buffers that `program.request` names, unconditional rows first if the program is guided; `asked.buffers` go first.

    Args:
        texts, requests: of the manifest.
        tokens: (name of the text entry, prompts) -> token ids.

    Raises:
        UserError: a prompt or a class label is missing, or given to a model that has none; a given buffer does not fit.
    """
    of_prompt = _of_prompt(texts, program, asked)
    _check_prompt(texts, [name for names in of_prompt.values() for name in names], asked)
    _check_labels(any(r.source == "class" and _is_wanted(r.buffer, program, asked) for r in requests), asked)
    buffers: dict[str, Array] = {}
    for entry in [entry for entry in texts if of_prompt[entry["name"]]]:
        prompts = list(asked.prompts or [""] * batch)
        if guided:
            prompts = list(asked.negative_prompts or [""] * batch) + prompts
        encoded = tokens(entry["name"], prompts)
        buffers[entry["outputs"]["ids"]] = encoded.ids
        if entry["outputs"]["mask"] is not None:
            buffers[entry["outputs"]["mask"]] = encoded.mask
    for wanted in requests:
        if wanted.buffer in program.request and wanted.buffer not in asked.buffers:
            values = _values(wanted.source, wanted.parameter, wanted.negative, asked, guided, batch)
            buffers[wanted.buffer] = np.array(values, program.buffers[wanted.buffer].dtype)
    buffers |= {name: _given(name, array, program, batch) for name, array in asked.buffers.items()}
    return {name: buffers[name].reshape(program.buffers[name].shape(batch)) for name in program.request}


def _is_wanted(name: str, program: Program, asked: Asked) -> bool:
    """Whether a buffer is still to be filled: neither it nor what is computed of it was given."""
    return name not in asked.buffers and (not asked.buffers or name in program.request)


def _of_prompt(texts: Sequence[JsonObject], program: Program, asked: Asked) -> dict[str, list[str]]:
    """Text entry -> the buffers that a prompt has to fill."""
    names = {entry["name"]: (entry["outputs"]["ids"], entry["outputs"]["mask"]) for entry in texts}
    return {text: [n for n in both if n is not None and _is_wanted(n, program, asked)] for text, both in names.items()}


def _given(name: str, array: Array, program: Program, batch: int) -> Array:
    if name not in program.request:
        expected = f"one of the inputs {names_text(program.request)}"
        raise UserError("buffers", expected=expected, got=f"'{shown(name)}'", fix="leave it out")
    dtype, shape = program.buffers[name].dtype, program.buffers[name].shape(batch)
    if (str(array.dtype), array.shape) != (dtype, shape):
        got = f"{array.dtype} {list(array.shape)}"
        raise UserError(f"request '{name}'", expected=f"{dtype} {list(shape)}", got=got, fix="give an array of that dtype and shape")
    return array


def _values(source: str, parameter: str | None, negative: float, asked: Asked, guided: bool, batch: int) -> list[float]:
    match source:
        case "class":
            positive = [float(c) for c in asked.class_labels or ()]
            return [negative] * batch * guided + positive
        case "given":
            return [float(asked.negative_prompts is not None)] * batch * guided + [1.0] * batch
        case _:
            assert parameter is not None
            return [asked.parameters[parameter]] * batch * (2 if guided else 1)


def _check_prompt(texts: Sequence[JsonObject], wanted: Sequence[str], asked: Asked) -> None:
    """Args: wanted: the buffers that a prompt has to fill."""
    if wanted and asked.prompts is None and asked.buffers:
        raise UserError("prompt", expected=f"a text, or the buffers {names_text(wanted)} too", got="neither", fix="give one of them")
    if wanted and asked.prompts is None:
        raise UserError("prompt", expected="a text", got="none", fix="give --prompt")
    if not texts and asked.prompts is not None:
        raise UserError("prompt", expected="none, as this model takes class labels", got="a text", fix="give --class-label instead")
    if not wanted and asked.prompts is not None:
        raise UserError("prompt", expected="none, as buffers take its place", got="a text", fix="leave one of them out")


def _check_labels(wanted: bool, asked: Asked) -> None:
    if wanted and asked.class_labels is None:
        raise UserError("class label", expected="a number", got="none", fix="give --class-label")
    if not wanted and asked.class_labels is not None:
        raise UserError("class label", expected="none, as this model takes prompts", got="a number", fix="give --prompt instead")
