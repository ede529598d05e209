"""What a calibration sees of a run: values on their way into layers, latents on their way into the loop, features of the middle block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from dexport.passes.graph import Graph, Kind, Port
from dexport.passes.quantization.calibrate import Accumulator
from dexport.passes.quantization.reservoir import Origin
from dexport.passes.quantization.samplers import feature


def latent_port(loop: Graph) -> Port:
    """The input of the loop that is the noisy latent."""
    return next(port for port in loop.inputs if Kind.LATENT in port.kinds)


class Watcher:
    """Called with every value of a run (see `TorchPipeline.run`).

    Args:
        accumulators: component -> its accumulators.
        loop: the denoiser's loop.
        middle: node of the loop whose features are kept, None for none.
        on_step: called with every step whose latent comes in.

    Attributes:
        latents: step -> what entered the loop in the present batch, float32 [pictures, C, h, w].
        features: step -> what the middle block made, float32 [F].
    """

    def __init__(
        self, accumulators: Mapping[str, tuple[Accumulator, ...]], loop: Graph, middle: str | None, on_step: Callable[[int], None]
    ) -> None:
        self._readers: dict[tuple[str, str], list[Accumulator]] = {}
        for component, found in accumulators.items():
            for accumulator in found:
                self._readers.setdefault((component, accumulator.about.node), []).append(accumulator)
        self._latent = (loop.name, loop.placeholders()[latent_port(loop).name].name)
        self._middle = (loop.name, middle)
        self._on_step = on_step
        self._occasion = self._pictures = 0
        self._calls: Counter[tuple[str, str, int]] = Counter()
        self.latents: dict[int, torch.Tensor] = {}
        self.features: dict[int, torch.Tensor] = {}

    def start(self, occasion: int, pictures: int) -> None:
        """Begins a batch of pictures; no two may have the same `occasion`."""
        self._occasion, self._pictures = occasion, pictures
        self._calls.clear()
        self.latents, self.features = {}, {}

    def __call__(self, component: str, step: int, node: fx.Node, value: Any) -> None:
        """Looks at one value."""
        place = (component, node.name)
        if place in self._readers:
            # Halves of the guidance in turn and chunks of a video call a component several times in one step.
            call = self._calls[component, node.name, step]
            self._calls[component, node.name, step] += 1
            for accumulator in self._readers[place]:
                accumulator.update(Origin(self._occasion, call, step), value)
        if place == self._latent:
            self.latents[step] = value[-self._pictures :].detach().float().cpu().clone()  # with guidance both halves are the same
            self._on_step(step)
        if place == self._middle and step not in self.features:
            self.features[step] = feature(value)
