import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, SchedulerMixin

from dexport.errors import UserError
from dexport.exporter.options import BuildOptions
from dexport.exporter.plan import plan
from tests.pipelines import tiny_stable_diffusion


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion pipeline saved with the scheduler settings of an early release."""
    directory = tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))
    saved = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "clip_sample": True, "steps_offset": 0}
    (directory / "scheduler" / "scheduler_config.json").write_text(json.dumps(saved))
    return directory


def original(directory: Path) -> DDIMScheduler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return DiffusionPipeline.from_pretrained(directory).scheduler


def settings(scheduler: SchedulerMixin) -> dict[str, Any]:
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}


def test_the_pipeline_sets_entries_of_its_scheduler(directory: Path) -> None:
    scheduler = plan(BuildOptions(model=str(directory), target="cpu")).scheduler
    assert (scheduler.config.clip_sample, scheduler.config.steps_offset) == (False, 1)
    assert settings(scheduler) == settings(original(directory))


def test_another_scheduler_starts_from_what_the_pipeline_set(directory: Path) -> None:
    scheduler = plan(BuildOptions(model=str(directory), target="cpu", scheduler="DPMSolverMultistep")).scheduler
    assert type(scheduler) is DPMSolverMultistepScheduler
    wanted = DPMSolverMultistepScheduler.from_config(original(directory).config)
    assert settings(scheduler) == settings(wanted)


def test_an_unknown_scheduler_is_refused_with_the_nearest_names(directory: Path) -> None:
    message = "expected a scheduler class of diffusers, got 'EulerDiskrete'; did you mean EulerDiscreteScheduler"
    with pytest.raises(UserError, match=message):
        plan(BuildOptions(model=str(directory), target="cpu", scheduler="EulerDiskrete"))
