"""The graphs of one size: every component captured, the denoiser split into its loop and its preludes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from dexport.exporter.components import load_component
from dexport.exporter.lora import merged
from dexport.exporter.options import Size
from dexport.exporter.pipelines.family import Component
from dexport.exporter.plan import Plan
from dexport.exporter.solver import Solver
from dexport.exporter.step_graphs import step_graphs
from dexport.passes.graph import Graph
from dexport.passes.hoist import Hoisted, hoist
from dexport.passes.ports import widen_ports


@dataclass(frozen=True)
class Split:
    """The graphs of one size."""

    size: Size
    encoders: tuple[Graph, ...]
    denoiser: Hoisted
    decoders: tuple[Graph, ...]
    steps: tuple[Graph, ...]

    def graphs(self) -> Iterator[Graph]:
        """Every graph that becomes a component of the bundle, in the order in which they run."""
        denoiser = self.denoiser
        preludes = (g for g in (denoiser.prompt, denoiser.schedule) if g is not None)
        yield from (*self.encoders, *preludes, denoiser.loop, *self.steps, *self.decoders)

    def section(self, graph: Graph) -> str:
        """The section of a recipe that treats a component: "denoiser", "prelude", "text_encoder", "vae", or "" for the sampler's own."""
        if graph is self.denoiser.loop:
            return "denoiser"
        if graph in (self.denoiser.prompt, self.denoiser.schedule):
            return "prelude"
        if graph in self.encoders:
            return "text_encoder"
        return "vae" if graph in self.decoders else ""

    def map(self, change: Callable[[Graph], Graph]) -> Split:
        """The same split with every graph changed, the step table included."""
        whole = self.denoiser
        table, schedule, prompt = (None if g is None else change(g) for g in (whole.table, whole.schedule, whole.prompt))
        return replace(
            self,
            encoders=tuple(change(g) for g in self.encoders),
            denoiser=replace(whole, loop=change(whole.loop), table=table, schedule=schedule, prompt=prompt),
            decoders=tuple(change(g) for g in self.decoders),
            steps=tuple(change(g) for g in self.steps),
        )

    def with_graphs(self, changed: Mapping[str, Graph]) -> Split:
        """The same split with the named graphs replaced; a step table may be new.

        Raises:
            KeyError: a name is none of a graph of this split.
        """
        known = {g.name for g in self.graphs()} | {self.table_name}
        for name in changed:
            if name not in known:
                raise KeyError(name)
        split = self.map(lambda graph: changed.get(graph.name, graph))
        table = changed.get(self.table_name, split.denoiser.table)
        return replace(split, denoiser=replace(split.denoiser, table=table))

    @property
    def table_name(self) -> str:
        """Name of the graph that computes step values at build."""
        return f"{self.denoiser.loop.name}_table"


def split_pipeline(decided: Plan, size: Size, solvers: list[Solver]) -> Split:
    """Captures every component at a size and hoists the denoiser; no weight is read.

    Raises:
        UserError: a checkpoint does not fit its configuration.
        Failure: a component cannot be captured.
    """
    components = {c.name: c for c in decided.pipeline.components(size, decided.dtype)}

    def load(component: Component) -> Graph:
        graph = load_component(decided.directory, component, decided.dtype)
        return replace(graph, weights=merged(graph.weights, component.folder, decided.loras))

    decoding = {call.component for call in decided.pipeline.decode}
    encoders = tuple(load(c) for n, c in components.items() if n != "denoiser" and n not in decoding)
    decoders = tuple(load(c) for n, c in components.items() if n in decoding)
    denoiser = hoist(load(components["denoiser"]))
    captured = Split(size, encoders, denoiser, decoders, ()).map(widen_ports)
    return replace(captured, steps=step_graphs(solvers, decided.pipeline.latent_shape(size)))
