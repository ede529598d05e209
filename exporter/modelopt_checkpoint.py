"""A checkpoint of ModelOpt in the place of a recipe: how every layer of the denoiser is treated, and its values.

The checkpoint speaks of the layers of the diffusers denoiser. Hoisting has spread them: what is left in the loop and what the preludes
compute once per prompt take ModelOpt's values; what depends on the step alone is computed when the bundle is built, and as its results are
what is stored, quantizing it would save nothing: it keeps its precision. So do layers that the checkpoint does not quantize, with the
weights of the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dexport.errors import UserError
from dexport.exporter.modelopt_bridge import SiteValues, read_modelopt, unread_quantizers
from dexport.exporter.modelopt_values import Context, Shared, decided_values, first_rounding, treatment_of
from dexport.exporter.weights import Checkpoint
from dexport.passes.graph import Graph, value
from dexport.passes.quantization.decide import Decisions
from dexport.passes.quantization.recipe import Treatment
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.sites import Site, sites
from dexport.passes.quantization.weights import fits

PARTS = ("denoiser", "prelude")
"""The sections of a recipe that the checkpoint stands for."""
_FURTHEST = 0.1
"""Largest distance of a weight from the pipeline's, relative: rounding to 8 bits moves it by a few percent, another model's is 1.4 away."""


@dataclass(frozen=True)
class Layer:
    """A layer that the checkpoint quantizes.

    Attributes:
        asked: what ModelOpt does.
        treatment: what is done here: the same, or the nearest that the target can do.
    """

    values: SiteValues
    asked: Treatment
    treatment: Treatment

    @property
    def convolution(self) -> bool:
        """Whether its weight is a kernel."""
        return self.values.weight.dim() > 2


@dataclass(frozen=True)
class ModeloptCheckpoint:
    """What the checkpoint says.

    Attributes:
        layers: by name, in the order of the file.
        unread: quantizers of something else, which have no counterpart here: what they round keeps its precision.
    """

    path: str
    layers: Mapping[str, Layer]
    unread: tuple[str, ...] = ()

    def treated(self, change: Callable[[Layer], Treatment]) -> ModeloptCheckpoint:
        """The same with other treatments."""
        return replace(self, layers={name: replace(layer, treatment=change(layer)) for name, layer in self.layers.items()})

    def treatments(self, graph: Graph) -> dict[str, Treatment | None]:
        """Site -> treatment, None where the checkpoint leaves a layer alone."""
        layers = ((site.name, self._layer(site)) for site in sites(graph))
        return {name: None if layer is None else layer.treatment for name, layer in layers}

    def absent(self, names: Iterable[str]) -> tuple[str, ...]:
        """Layers that are none of the sites named: those that are computed when the bundle is built."""
        present = {_layer_name(name) for name in names}
        return tuple(name for name in self.layers if name not in present)

    def decide(self, graph: Graph, treatments: Mapping[str, Treatment | None], scratch: Scratch) -> Decisions:
        """The values of every treated site of a graph; why others are skipped."""
        values, skipped, notes = {}, {}, {}
        dtypes = {node.name: value(node).dtype for node in graph.module.graph.nodes if hasattr(node.meta.get("val"), "dtype")}
        shared: Shared = {}
        for site in sites(graph):
            layer, treatment = self._layer(site), treatments.get(site.name)
            reason = _refusal(site, layer, treatment)
            if reason is not None or layer is None or treatment is None:
                skipped[site.name] = reason or ""
                continue
            context = Context(site.source, dtypes[site.node], scratch, shared)
            values[site.name] = decided_values(f"{self.path}:{site.name}", layer.values, treatment, context)
            if (first := first_rounding(layer.values)) and treatment == layer.asked:
                notes[site.name] = f"rounded to {first} before"
        return Decisions(values, skipped, notes)

    def check(self, model: Checkpoint, folder: Path) -> None:
        """Refuses a checkpoint that was not quantized from the pipeline's denoiser.

        Args:
            model: the tensors of the denoiser's folder.

        Raises:
            UserError: names the first layer that differs.
        """
        for name, layer in self.layers.items():
            stored = model.get(f"{name}.weight")
            shape = tuple(layer.values.weight.shape)
            if stored is None:
                raise self._other(name, folder, "a layer of its name", "none")
            if stored.shape != shape:
                raise self._other(name, folder, f"a weight {_size(stored.shape)}", _size(shape))
            own = stored.read().float()
            distance = float((layer.values.original_weight().float() - own).norm() / own.norm().clamp(min=1e-30))
            if distance > _FURTHEST:
                raise self._other(name, folder, "the same weight", f"one that is {distance:.0%} away from it")

    def _layer(self, site: Site) -> Layer | None:
        return self.layers.get(_layer_name(site.name))

    def _other(self, name: str, folder: Path, expected: str, got: str) -> UserError:
        fix = "give the checkpoint that was quantized from this pipeline's denoiser"
        return UserError(f"{self.path}: {name}", expected=f"{expected}, as in {folder}", got=got, fix=fix)


def open_modelopt(path: str) -> ModeloptCheckpoint:
    """Reads a checkpoint.

    Raises:
        UserError: it cannot be read (see `read_modelopt`), or holds something that dexport cannot say.
    """
    found = {}
    for name, values in read_modelopt(Path(path)).items():
        asked = treatment_of(f"{path}: {name}", values)
        found[name] = Layer(values, asked, asked)
    return ModeloptCheckpoint(path, found, unread_quantizers(Path(path)))


def _layer_name(site: str) -> str:
    return site.partition("#")[0]  # one weight may serve several nodes


def _refusal(site: Site, layer: Layer | None, treatment: Treatment | None) -> str | None:
    """Why a site keeps its precision."""
    if layer is None:
        return "the checkpoint does not quantize it"
    if treatment is None:
        return "it was asked to be kept"
    if treatment.weights is None:
        return "the target has no form of it"
    activations = treatment.activations
    if activations is not None and activations.block and site.inputs % activations.block:
        return f"{site.inputs} inputs are no multiple of the activation block of {activations.block}"
    return fits(site.shape, treatment.weights)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
