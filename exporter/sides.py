"""The two sides of a comparison: a bundle, run by its engines, or a pipeline directory, run in PyTorch. Both give a `Run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dexport.errors import UserError
from dexport.exporter.golden import fits
from dexport.exporter.options import BuildOptions, Size
from dexport.exporter.plan import Plan, plan
from dexport.exporter.torch_pipeline import Run, open_torch_pipeline
from dexport.runtime.bundle import open_bundle
from dexport.runtime.bundle_writer import ARCHIVE_SUFFIX
from dexport.runtime.manifest import MANIFEST_NAME, Manifest
from dexport.runtime.pipeline import Pipeline, load

Conditions = Sequence[str] | Sequence[int]
Progress = Callable[[float], None]
"""Called with the fraction of a run that is done."""

_PICTURES_AT_ONCE = 4  # of a pipeline directory, between two calls of the progress


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What both sides are asked for; everything that would make them differ for another reason than themselves."""

    size: Size
    steps: int
    guidance: float
    scheduler: str | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    frames: int | None = None
    loras: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a side can be asked for.

    Attributes:
        classes: number of classes, for models that take class labels; None for those that take prompts.
        sizes, steps: the first is the default; `fixed` says that there are no others.
        setting: what only one side can decide: scheduler, frames and so on.
    """

    classes: int | None
    sizes: tuple[Size, ...]
    steps: tuple[int, ...]
    fixed: bool
    setting: Setting


@dataclass(frozen=True)
class Made:
    """A run, and the bytes of the weights by component."""

    run: Run
    weight_bytes: Mapping[str, int]


class Side(Protocol):
    """One side of a comparison."""

    @property
    def name(self) -> str:
        """What a reader calls it."""

    @property
    def abilities(self) -> Abilities:
        """What it can be asked for."""

    def make(self, conditions: Conditions, seeds: Sequence[int], setting: Setting, progress: Progress) -> Made:
        """Makes one picture per condition and seed."""


def open_side(path: str, *, trust: bool = False) -> Side:
    """A bundle, or a pipeline directory or hub id.

    Raises:
        UserError: it is neither, or the bundle holds no engines.
    """
    folder = Path(path)
    if folder.suffix == ARCHIVE_SUFFIX or folder.is_file() or (folder / MANIFEST_NAME).is_file():
        return _opened_bundle(folder, trust)
    return ModelSide(path, plan(BuildOptions(model=path, target="cpu", precision="fp32")))


def _opened_bundle(path: Path, trust: bool) -> BundleSide:
    manifest = open_bundle(path, trust=trust, verify="sizes").manifest
    if manifest.is_kit:
        fix = "finalize it on the device with `dexport finalize`, and compare there"
        raise UserError(str(path), expected="a bundle with engines", got="a build kit for a device", fix=fix)
    return BundleSide(path, manifest, trust)


@dataclass(frozen=True)
class BundleSide:
    """A bundle."""

    path: Path
    manifest: Manifest
    trust: bool = False

    @property
    def name(self) -> str:
        """File, target and recipe."""
        recipe = (self.manifest.recipe or {}).get("name")
        return f"{self.path.name} ({recipe or self.manifest.precision} for {self.manifest.target})"

    @property
    def abilities(self) -> Abilities:
        """What the manifest lists."""
        manifest, config = self.manifest, self.manifest.config
        sizes = tuple(dict.fromkeys(entry.size for entry in manifest.programs))
        steps = tuple(dict.fromkeys(entry.steps for entry in manifest.programs))
        low, high = config.get("guidance_interval") or (0.0, 1.0)
        setting = Setting(
            size=sizes[0],
            steps=steps[0],
            guidance=manifest.guidance.default,
            scheduler=manifest.programs[0].scheduler,
            guidance_interval=(float(low), float(high)),
            frames=manifest.frames,
            loras=tuple(config.get("loras") or ()),
        )
        classes = next((int(r.negative) for r in manifest.requests if r.source == "class"), None)
        return Abilities(classes=classes, sizes=sizes, steps=steps, fixed=True, setting=setting)

    def make(self, conditions: Conditions, seeds: Sequence[int], setting: Setting, progress: Progress) -> Made:
        """Runs the engines, as many pictures at once as the bundle is made for."""
        at_once, runs = self.manifest.batch, []
        with load(self.path, trust=self.trust, verify="sizes") as pipe:
            for start in range(0, len(conditions), at_once):
                end = min(start + at_once, len(conditions))
                runs.append(_run_of(pipe, conditions[start:end], seeds[start:end], setting))
                progress(end / len(conditions))
        return Made(_joined(runs), {name: found.weight_bytes for name, found in self.manifest.components.items() if found.weight_bytes})


@dataclass(frozen=True)
class ModelSide:
    """A pipeline directory or hub id, in float32 on the processor."""

    model: str
    plan: Plan

    @property
    def name(self) -> str:
        """Its directory's name."""
        return f"{Path(self.model.rstrip('/')).name} in PyTorch, fp32"

    @property
    def abilities(self) -> Abilities:
        """The defaults of the pipeline; others may be asked for."""
        classes = next((int(r.negative) for r in self.plan.pipeline.requests if r.source == "class"), None)
        setting = Setting(size=self.plan.sizes[0], steps=self.plan.steps[0], guidance=self.plan.guidance)
        return Abilities(classes=classes, sizes=self.plan.sizes, steps=self.plan.steps, fixed=False, setting=setting)

    def make(self, conditions: Conditions, seeds: Sequence[int], setting: Setting, progress: Progress) -> Made:
        """Captures the pipeline and runs its graphs."""
        options = BuildOptions(
            model=self.model,
            target="cpu",
            precision="fp32",
            sizes=(setting.size,),
            steps=(setting.steps,),
            guidance=max(1.0, setting.guidance) if self.plan.guided else setting.guidance,  # 1 and less turn it off
            scheduler=setting.scheduler,
            guidance_interval=setting.guidance_interval,
            frames=setting.frames,
            loras=setting.loras,
        )
        opened = open_torch_pipeline(options)
        weight_bytes = {name: sum(w.nbytes for w in g.used_weights().values()) for name, g in opened.graphs.items()}
        runner = opened.materialised() if fits(tuple(opened.graphs.values())) else opened
        runs = []
        for start in range(0, len(conditions), _PICTURES_AT_ONCE):
            end = min(start + _PICTURES_AT_ONCE, len(conditions))
            runs.append(runner.run(conditions[start:end], seeds[start:end]))
            progress(end / len(conditions))
        return Made(_joined(runs), {name: count for name, count in weight_bytes.items() if count})


def _run_of(pipe: Pipeline, conditions: Conditions, seeds: Sequence[int], setting: Setting) -> Run:
    latents: list[Any] = []
    text = isinstance(conditions[0], str)
    made = pipe(
        list(map(str, conditions)) if text else None,
        class_labels=None if text else [int(label) for label in conditions],
        num_inference_steps=setting.steps,
        height=setting.size[0],
        width=setting.size[1],
        guidance_scale=setting.guidance,
        seed=list(seeds),
        callback_on_step_end=lambda _pipe, _step, _timestep, values: latents.append(values["latents"].astype(np.float32)),
        output_type="np",
    )
    return Run(np.asarray(made.images if made.frames is None else made.frames), np.stack(latents))


def _joined(runs: Sequence[Run]) -> Run:
    return Run(np.concatenate([run.pictures for run in runs]), np.concatenate([run.latents for run in runs], axis=1))
