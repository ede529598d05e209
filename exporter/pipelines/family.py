"""What the exporter needs to know of a pipeline family: one adapter file per family answers these questions.

Buffers are wired by name: the output "prompt_embeds" of a text encoder feeds the input "prompt_embeds" of the denoiser. Whatever a
pipeline does between its encoders and its denoiser (concatenate, pad, mask, zero) is written in the denoiser's wrapper, where hoisting
finds that it depends on the prompt alone and moves it out of the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dexport.exporter.capture import Input

Size = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True)
class Component:
    """A model of the pipeline as it will be captured.

    Attributes:
        name: "text_encoder", "denoiser", "vae_decoder", ...
        folder: subfolder of the pipeline that holds its weights.
        construct: makes the bare model from its configuration, without weights.
        wrap: puts the bare model (as attribute `model`) into the module whose forward is captured.
        wide: compute in fp32 whatever the precision of the build (an overflow is known).
    """

    name: str
    folder: str
    construct: Callable[[], nn.Module]
    wrap: Callable[[nn.Module], nn.Module]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    wide: bool = False


@dataclass(frozen=True)
class Text:
    """A text input: a prompt becomes token ids (and a mask) for a text encoder.

    Attributes:
        name: names the tokenizer file in the bundle.
        folder: subfolder of the pipeline that holds the tokenizer.
        length: tokens after padding and truncation.
        ids, mask: buffers to fill; mask may be absent.
        clean: what the pipeline does to a prompt before it tokenizes: any of "lower", "strip", "whitespace", "html", in order.
    """

    name: str
    folder: str
    length: int
    ids: str
    mask: str | None = None
    clean: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """Another buffer that the request fills, one value per row.

    source "class": the class label, `negative` for the unconditional row; "parameter": the value of the request parameter of that
    name; "given": 1 where the user gave a prompt for the row and 0 where the default stands in.
    """

    buffer: str
    source: Literal["class", "parameter", "given"]
    parameter: str | None = None
    negative: float = 0.0


@dataclass(frozen=True)
class Guidance:
    """How a pipeline strengthens its condition.

    "classifier-free": two rows per picture, unconditional and conditional, combined as u + g (c - u), off at g <= 1;
    "embedded": the scale is an input of the model; "none".
    """

    kind: Literal["classifier-free", "embedded", "none"]
    default: float


@dataclass(frozen=True)
class Call:
    """One run of a component after the loop, with buffers in the order of its inputs and outputs.

    A buffer that is both input and output carries state from one call to the next: the feature cache of a video decoder.
    """

    component: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Pipeline:
    """An opened pipeline directory.

    Attributes:
        components: (size, dtype) -> the components at that size.
        latent_shape: (size) -> shape of one latent, without the batch axis.
        schedule_arguments: (size, steps) -> keyword arguments of `set_timesteps` beside the number of steps.
        size_multiple: height and width must be multiples of it, in pixels.
        scheduler_settings: what the pipeline sets in its scheduler's configuration, where that has the entry, whatever is saved.
        decode: what turns the buffer "latent" into pixels after the loop.
        results: the buffers with the pixels, ["batch", H, W, 3] or ["batch", frames, H, W, 3]; several are joined along the frames.
        frames: frames of a video, None for images.
    """

    family: str
    directory: Path
    class_name: str
    components: Callable[[Size, torch.dtype], tuple[Component, ...]]
    texts: tuple[Text, ...]
    guidance: Guidance
    latent_shape: Callable[[Size], tuple[int, ...]]
    default_size: Size
    size_multiple: int
    default_steps: int
    scheduler_folder: str = "scheduler"
    scheduler_settings: Mapping[str, Any] = field(default_factory=dict)
    requests: tuple[Request, ...] = ()
    schedule_arguments: Callable[[Size, int], Mapping[str, Any]] = field(default=lambda size, steps: {})
    decode: tuple[Call, ...] = (Call("vae_decoder", ("latent",), ("image",)),)
    results: tuple[str, ...] = ("image",)
    frames: int | None = None
    frames_per_second: int | None = None
