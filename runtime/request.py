"""What a user asks for becomes the request buffers of a program: token ids, class labels, parameters, one row per picture and half."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dexport.errors import UserError
from dexport.runtime.manifest import JsonObject, RequestBuffer
from dexport.runtime.program import Program
from dexport.runtime.text import Tokens

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Asked:
    """The conditions of one batch, one entry per picture; None where the user gave nothing."""

    prompts: Sequence[str] | None
    negative_prompts: Sequence[str] | None
    class_labels: Sequence[int] | None
    parameters: Mapping[str, float]


def request_buffers(
    texts: Sequence[JsonObject],
    requests: Sequence[RequestBuffer],
    program: Program,
    guided: bool,
    asked: Asked,
    batch: int,
    tokens: Callable[[str, Sequence[str]], Tokens],
) -> dict[str, Array]:
    """The buffers that `program.request` names, unconditional rows first if the program is guided.

    Args:
        texts, requests: of the manifest.
        tokens: (name of the text entry, prompts) -> token ids.

    Raises:
        UserError: a prompt or a class label is missing, or given to a model that has none.
    """
    _check(texts, requests, asked)
    buffers: dict[str, Array] = {}
    for entry in texts:
        prompts = list(asked.prompts or [""] * batch)
        if guided:
            prompts = list(asked.negative_prompts or [""] * batch) + prompts
        encoded = tokens(entry["name"], prompts)
        buffers[entry["outputs"]["ids"]] = encoded.ids
        if entry["outputs"]["mask"] is not None:
            buffers[entry["outputs"]["mask"]] = encoded.mask
    for wanted in requests:
        values = _values(wanted.source, wanted.parameter, wanted.negative, asked, guided, batch)
        if wanted.buffer in program.request:
            buffers[wanted.buffer] = np.array(values, program.buffers[wanted.buffer].dtype)
    return {name: buffers[name].reshape(program.buffers[name].shape(batch)) for name in program.request}


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


def _check(texts: Sequence[JsonObject], requests: Sequence[RequestBuffer], asked: Asked) -> None:
    wants_class = any(r.source == "class" for r in requests)
    if texts and asked.prompts is None:
        raise UserError("prompt", expected="a text", got="none", fix="give --prompt")
    if not texts and asked.prompts is not None:
        raise UserError("prompt", expected="none, as this model takes class labels", got="a text", fix="give --class-label instead")
    if wants_class and asked.class_labels is None:
        raise UserError("class label", expected="a number", got="none", fix="give --class-label")
    if not wants_class and asked.class_labels is not None:
        raise UserError("class label", expected="none, as this model takes prompts", got="a number", fix="give --prompt instead")
