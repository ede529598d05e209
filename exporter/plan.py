"""The plan of a build: everything that can be decided, and refused, before any work is done."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dexport.errors import UserError
from dexport.exporter.effective_recipe import EffectiveRecipe, effective_recipe
from dexport.exporter.lora import Lora, open_lora, parse_lora
from dexport.exporter.options import BuildOptions, Size
from dexport.exporter.pipelines import open_directory
from dexport.exporter.pipelines.family import Pipeline
from dexport.exporter.scheduler_run import Schedule
from dexport.exporter.source import local_directory
from dexport.targets.catalogue import find
from dexport.targets.latency import require_estimable
from dexport.targets.target import Target

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_KITS = ("openvino", "tensorrt-kit")
_NARROW_STORAGE_ONLY = ("openvino", "onnxruntime-cpu")  # processors: the graph stays fp32, weights are stored narrow


@dataclass(frozen=True)
class Plan:
    """What will be built.

    Attributes:
        dtype: of weights and activations in the captured graphs.
        storage: of the weights in the bundle.
        recipe: how to quantize, None to leave everything in `precision`.
        scheduler: a diffusers scheduler, as the pipeline or the option says.
    """

    options: BuildOptions
    directory: Path
    pipeline: Pipeline
    target: Target
    precision: str
    dtype: torch.dtype
    storage: torch.dtype
    sizes: tuple[Size, ...]
    steps: tuple[int, ...]
    scheduler: Any
    guidance: float
    loras: tuple[Lora, ...]
    recipe: EffectiveRecipe | None

    @property
    def guided(self) -> bool:
        """Whether programs with an unconditional and a conditional half are needed."""
        return self.pipeline.guidance.kind == "classifier-free"

    def schedule(self, size: Size, steps: int) -> Schedule:
        """How the pipeline sets its scheduler up for this size and number of steps."""
        return Schedule(steps, dict(self.pipeline.schedule_arguments(size, steps)))

    def lines(self) -> list[str]:
        """The plan in words, for --dry-run."""
        sizes = ", ".join(f"{h}x{w}" for h, w in self.sizes)
        names = ", ".join(c.name for c in self.pipeline.components(self.sizes[0], self.dtype))
        return [
            f"model      {self.directory} ({self.pipeline.class_name}, family {self.pipeline.family})",
            f"target     {self.target.id} ({self.target.name}), backend {self.target.backend}",
            f"precision  {self.precision}",
            f"sizes      {sizes}",
            f"components {names}",
            f"sampling   {type(self.scheduler).__name__}, steps {', '.join(map(str, self.steps))}",
            f"guidance   {self.pipeline.guidance.kind}, default {self.guidance:g}",
            *(f"lora       {lora.file.path} at {lora.file.scale:g}" for lora in self.loras),
            *(self.recipe.lines() if self.recipe is not None else ()),
        ]


def plan(options: BuildOptions) -> Plan:
    """Decides and checks everything that needs no work.

    Raises:
        UserError: unknown target or scheduler, a precision that the target lacks, a size that does not divide, not a pipeline directory,
            a LoRA that does not fit, a budget of time for a device whose speed is not known.
    """
    target = find(options.target)
    target.require_buildable()
    if options.kit and target.backend not in _KITS:
        got = f"{target.id}, whose bundles need nothing to be built on the device"
        raise UserError("--kit", expected="the target cpu or a Jetson", got=got, fix="drop --kit")
    if options.budget_ms is not None:
        require_estimable(target, "--budget-ms")
    precision = options.precision or target.default_precision
    if precision not in _DTYPES:
        raise UserError("precision", expected="fp32, fp16 or bf16", got=precision, fix="choose one of them")
    target.require(precision)
    directory = local_directory(options.model)
    pipeline = open_directory(directory, options.frames)
    on_processor = target.backend in _NARROW_STORAGE_ONLY
    return Plan(
        options=options,
        directory=directory,
        pipeline=pipeline,
        target=target,
        precision=precision,
        dtype=torch.float32 if on_processor else _DTYPES[precision],
        storage=_DTYPES[precision],
        sizes=tuple(_checked_size(s, pipeline) for s in options.sizes) or (pipeline.default_size,),
        steps=options.steps or (pipeline.default_steps,),
        scheduler=_scheduler(options.scheduler, directory / pipeline.scheduler_folder, pipeline.scheduler_settings),
        guidance=pipeline.guidance.default if options.guidance is None else options.guidance,
        loras=tuple(open_lora(parse_lora(text), directory, pipeline.class_name) for text in options.loras),
        recipe=effective_recipe(options, target),
    )


def _checked_size(size: Size, pipeline: Pipeline) -> Size:
    multiple = pipeline.size_multiple
    if size[0] % multiple or size[1] % multiple:
        near = tuple(max(multiple, round(s / multiple) * multiple) for s in size)
        fix = f"use for example {near[0]}x{near[1]}"
        raise UserError(f"size {size[0]}x{size[1]}", expected=f"multiples of {multiple} pixels", got=f"{size[0]} and {size[1]}", fix=fix)
    return size


def _scheduler(name: str | None, folder: Path, settings: Mapping[str, Any]) -> Any:
    """The pipeline's scheduler as the pipeline sets it, or another class with its configuration, as diffusers' `from_config` swaps them."""
    file = folder / "scheduler_config.json"
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        class_name = str(saved["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        got = "no such file" if isinstance(error, OSError) else "something else"
        raise UserError(str(file), expected="JSON with the key _class_name", got=got, fix="save the pipeline again") from error
    own = _scheduler_class(class_name).from_config(saved)
    own.register_to_config(**{entry: wanted for entry, wanted in settings.items() if entry in own.config})
    swapped = _scheduler_class(name) if name else type(own)
    return own if swapped is type(own) else swapped.from_config(own.config)


def _scheduler_class(wanted: str) -> Any:
    import diffusers

    found = getattr(diffusers, wanted, None) or getattr(diffusers, f"{wanted}Scheduler", None)
    if not (inspect.isclass(found) and issubclass(found, diffusers.SchedulerMixin)):
        every = [n for n in dir(diffusers) if n.endswith("Scheduler")]
        near = difflib.get_close_matches(wanted, every, 3, cutoff=0.3)
        fix = f"did you mean {' or '.join(near)}?" if near else "see diffusers' list of schedulers"
        raise UserError(f"scheduler {wanted}", expected="a scheduler class of diffusers", got=repr(wanted), fix=fix)
    return found
