"""`dexport calibrate`: a pipeline and prompts become a file of statistics."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click

from dexport.building import export_extra
from dexport.columns import amount
from dexport.errors import UserError
from dexport.exporter.options import BuildOptions, parse_size
from dexport.exporter.prompts import read_prompts
from dexport.progress import reporting

_ZERO_DATA = "zero-data"


@dataclass(frozen=True, kw_only=True)
class CalibrateRequest:
    """The arguments of `dexport calibrate`, as typed."""

    model: str
    prompts: Path | None
    output: Path
    steps: int | None = None
    size: str | None = None
    scheduler: str | None = None
    guidance: float | None = None
    sampler: str = "uniform"
    calibration_size: int | None = None
    seed: int = 0


def calibrate_command(request: CalibrateRequest) -> None:
    """Calibrates and says what was seen; an interrupted calibration leaves a file that the same command goes on from.

    Raises:
        UserError: whatever is wrong with the request, before the work where that can be known.
    """
    prompts = _prompts(request)
    options = BuildOptions(
        model=request.model,
        target="cpu",
        precision="fp32",
        sizes=() if request.size is None else (parse_size(request.size),),
        steps=() if request.steps is None else (request.steps,),
        scheduler=request.scheduler,
        guidance=request.guidance,
    )
    if not request.output.parent.is_dir() or request.output.is_dir():
        got = "a folder" if request.output.is_dir() else f"a file in {request.output.parent}, which does not exist"
        raise UserError(f"--output {request.output}", expected="a file in a folder that exists", got=got, fix="choose another")
    start = time.monotonic()
    try:
        line = _calibrate(request, options, prompts)
    except KeyboardInterrupt:
        print(_left_behind(request.output), file=sys.stderr)
        raise
    click.echo(f"wrote {request.output}: {line} in {time.monotonic() - start:.1f} s")


def _calibrate(request: CalibrateRequest, options: BuildOptions, prompts: tuple[str, ...] | None) -> str:
    with export_extra(), reporting() as report:
        report("import torch and diffusers", None)
        from dexport.exporter.calibration import accumulator_bytes, calibrate
        from dexport.exporter.calibration_request import CalibrationRequest, calibration_conditions, named_sampler
        from dexport.exporter.torch_pipeline import open_torch_pipeline

        sampler = named_sampler(request.sampler)
        report(f"capture {request.model}", None)
        pipeline = open_torch_pipeline(options)
        conditions = calibration_conditions(pipeline.plan, prompts, request.calibration_size)
        asked = CalibrationRequest(conditions=conditions, seed=request.seed, sampler=sampler)
        found = calibrate(pipeline, asked, request.output, report)
        layers = sum(len(component) for component in found.components.values())
        steps, held = len(found.schedule.timesteps), amount(accumulator_bytes(pipeline), "B")
    return (
        f"{layers} layers, {steps} steps, {len(conditions)} pictures, {len(found.samples.steps)} samples; statistics took {held} of memory"
    )


def _prompts(request: CalibrateRequest) -> tuple[str, ...] | None:
    """The lines of the file; None for zero-data, which brings its own."""
    if request.sampler == _ZERO_DATA:
        if request.prompts is not None:
            fix = "leave --prompts out, or choose another sampler"
            raise UserError("--prompts", expected=f"none with --sampler {_ZERO_DATA}", got=str(request.prompts), fix=fix)
        return None
    if request.prompts is None:
        fix = f"give --prompts FILE, or --sampler {_ZERO_DATA} to do without"
        raise UserError("--prompts", expected="a file with one prompt per line", got="none", fix=fix)
    return read_prompts(request.prompts)


def _left_behind(output: Path) -> str:
    from dexport.exporter.calibration_file import resume_path

    unfinished = resume_path(output)
    if unfinished.exists():
        return f"what was seen so far is in {unfinished}; the same command goes on from there"
    return "nothing was finished yet; the same command begins anew"
