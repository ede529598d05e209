"""`dexport finalize`: a kit becomes a finished bundle, here or on another machine over ssh."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dexport.columns import amount
from dexport.progress import reporting

if TYPE_CHECKING:
    from dexport.runtime.finalize.finalize import Finished


@dataclass(frozen=True, kw_only=True)
class FinalizeRequest:
    """The arguments of `dexport finalize`, as typed."""

    kit: Path
    output: Path | None
    engines: Path | None
    test: bool


def finalize_command(request: FinalizeRequest) -> None:
    """Finishes a kit and says what came of it.

    Raises:
        UserError: whatever is wrong with the request.
        Failure: what broke on the way.
    """
    output = request.output or default_output(request.kit)
    _finalize_here(request, output)


def default_output(kit: Path) -> Path:
    """NAME-finished.dxb beside NAME.dxb, whether that is a file or a folder."""
    return kit.with_name(f"{kit.name.removesuffix('.dxb')}-finished.dxb")


def _finalize_here(request: FinalizeRequest, output: Path) -> None:
    from dexport.runtime.finalize.finalize import finalize

    start = time.monotonic()
    with reporting() as report:
        finished = finalize(request.kit, output, test=request.test, engines=request.engines, report=report)
    for line in summary(finished, time.monotonic() - start):
        click.echo(line)


def summary(finished: Finished, seconds: float) -> list[str]:
    """What was done, in words."""
    path = finished.path
    size = path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    kept = f", {len(finished.kept)} kept from before" if finished.kept else ""
    lines = [f"wrote {path}: {amount(size, 'B')}, {len(finished.built)} engines built{kept}, in {seconds:.1f} s"]
    if finished.checks:
        worst = max(finished.checks, key=lambda check: check.error / check.tolerance)
        lines.append(
            f"golden test passed: {len(finished.checks)} runs, the worst error {worst.error:.3g} of {worst.tolerance:g} in {worst.name}"
        )
    return [*lines, *(f"warning: {warning}" for warning in finished.warnings)]
