"""A quantizer: a recipe with everything found that it needs (bits of every layer, learned rounding), to be applied to splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dexport.exporter.mixed_precision import allocate_treatments
from dexport.exporter.modelopt_checkpoint import PARTS, ModeloptCheckpoint
from dexport.exporter.options import BuildOptions
from dexport.exporter.quantization import QuantizedSplit, Refine, quantized_split
from dexport.exporter.reconstruction import refine
from dexport.exporter.split import Split
from dexport.exporter.torch_pipeline import TorchPipeline, torch_pipeline
from dexport.passes.quantization.recipe import Recipe, Treatment
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.statistics import Statistics

Report = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Quantizer:
    """What turns splits into quantized ones.

    Attributes:
        overrides: component -> site -> treatment that an allocator or a checkpoint chose.
        learned: rounding, where the recipe learns it.
        checkpoint: gives the values of the denoiser.
    """

    recipe: Recipe
    statistics: Statistics | None
    scratch: Scratch
    overrides: Mapping[str, Mapping[str, Treatment | None]] = field(default_factory=dict)
    learned: Refine | None = None
    checkpoint: ModeloptCheckpoint | None = None

    def split(self, split: Split, skip: Sequence[str] = ()) -> QuantizedSplit:
        """The split quantized, but for the layers to skip."""
        return quantized_split(
            split,
            self.recipe,
            self.statistics,
            self.scratch,
            skip=skip,
            overrides=self.overrides,
            refine=self.learned,
            checkpoint=self.checkpoint,
        )

    def pipeline(self, pipeline: TorchPipeline, skip: Sequence[str] = ()) -> tuple[TorchPipeline, QuantizedSplit]:
        """The pipeline quantized, and what became of its layers."""
        quantized = self.split(pipeline.split, skip)
        return torch_pipeline(pipeline.plan, quantized.split, pipeline.solver), quantized


def find_quantizer(
    pipeline: TorchPipeline,
    recipe: Recipe,
    statistics: Statistics | None,
    scratch: Scratch,
    *,
    options: BuildOptions | None = None,
    device: str = "cpu",
    report: Report = lambda stage, done: None,
    checkpoint: ModeloptCheckpoint | None = None,
) -> Quantizer:
    """Allocates bits and prepares the learning of rounding, where the recipe asks for them; a checkpoint has both behind it.

    Args:
        options: may hold a budget.
        device: where models run that are looked at.

    Raises:
        UserError: the budget cannot be met.
    """
    if checkpoint is not None:
        split = pipeline.split
        chosen = {graph.name: checkpoint.treatments(graph) for graph in split.graphs() if split.section(graph) in PARTS}
        return Quantizer(recipe, statistics, scratch, chosen, checkpoint=checkpoint)
    section = recipe.section("denoiser")
    if section is None or statistics is None:
        return Quantizer(recipe, statistics, scratch)
    overrides: Mapping[str, Mapping[str, Treatment | None]] = {}
    if section.mixed_precision is not None:
        report("choose bits for every layer", None)
        overrides = allocate_treatments(pipeline, recipe, statistics, options or pipeline.plan.options, scratch, report)
    learned = None
    if section.reconstruction is not None:
        learned = refine(pipeline, recipe, statistics, scratch, report, overrides)
    return Quantizer(recipe, statistics, scratch, overrides, learned)
