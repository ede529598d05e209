"""What `dexport estimate` does once its arguments are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import click

from dexport.building import estimated
from dexport.errors import UserError
from dexport.estimates import estimate_lines
from dexport.exporter.options import BuildOptions, parse_size
from dexport.runtime.bundle import Bundle, open_bundle
from dexport.runtime.manifest import MANIFEST_NAME, ProgramEntry
from dexport.runtime.workload import bundle_estimate
from dexport.targets.catalogue import find
from dexport.targets.estimate import Estimate


@dataclass(frozen=True)
class EstimateRequest:
    """What the user typed; see `dexport estimate --help`."""

    subject: str
    target: str | None
    recipe: str | None
    size: str | None
    steps: int | None
    allow_degrade: bool
    as_json: bool


def estimate_command(request: EstimateRequest) -> None:
    """Prints what a model or a bundle takes on a target.

    Raises:
        UserError: unknown target, recipe, size or number of steps, or neither a pipeline nor a bundle.
    """
    path = Path(request.subject)
    is_bundle = path.suffix == ".dxb" or (path / MANIFEST_NAME).is_file()
    found, size = _of_bundle(path, request) if is_bundle else _of_model(request)
    if request.as_json:
        named = {"subject": request.subject, "recipe": request.recipe, "size": f"{size[0]}x{size[1]}"}
        click.echo(json.dumps(named | found.to_json(), indent=1))
        return
    for line in estimate_lines(found, f"{size[0]}x{size[1]}"):
        click.echo(line)


def _of_model(request: EstimateRequest) -> tuple[Estimate, tuple[int, int]]:
    if request.target is None:
        raise UserError("--target", expected="a device, such as rtx-4090", got="nothing", fix="`dexport targets` lists all")
    options = BuildOptions(
        model=request.subject,
        target=request.target,
        recipe=request.recipe,
        sizes=() if request.size is None else (parse_size(request.size),),
        steps=() if request.steps is None else (request.steps,),
        allow_degrade=request.allow_degrade,
    )
    return estimated(options)[0]


def _of_bundle(path: Path, request: EstimateRequest) -> tuple[Estimate, tuple[int, int]]:
    if request.recipe is not None:
        raise UserError(
            "--recipe", expected="a model, which is not quantized yet", got=f"the bundle {path}", fix="drop it, or name the model"
        )
    bundle = open_bundle(path, verify="sizes")
    entry = _entry(bundle, request)
    found = bundle_estimate(bundle, entry, None if request.target is None else find(request.target))
    if found is None:
        raise UserError(str(path), expected="workload.json, which builds write", got="none", fix="build the bundle again")
    return found, entry.size


def _entry(bundle: Bundle, request: EstimateRequest) -> ProgramEntry:
    """The program that is asked for: guided where there is one."""
    entries = bundle.manifest.programs
    size = entries[0].size if request.size is None else parse_size(request.size)
    steps = entries[0].steps if request.steps is None else request.steps
    found = next((entry for entry in entries if (entry.size, entry.steps) == (size, steps)), None)
    if found is None:
        present = ", ".join(sorted({f"{e.size[0]}x{e.size[1]} in {e.steps} steps" for e in entries}))
        got = f"{size[0]}x{size[1]} in {steps} steps"
        raise UserError(str(bundle.path), expected=f"one of {present}", got=got, fix="choose one of these")
    return found
