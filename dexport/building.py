"""The door to the exporter, whose packages an installation may lack."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dexport.errors import UserError
from dexport.estimates import estimate_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dexport.exporter.options import BuildOptions, Size
    from dexport.targets.estimate import Estimate


def build_bundle(options: BuildOptions, output: Path | None, report: Callable[[str, float | None], None]) -> Path:
    """Builds a bundle, by default MODEL-TARGET.dxb in the current folder, and returns its path; raises like `dexport.build`."""
    with export_extra():
        from dexport.exporter.build import build, default_output

        return build(options, output or default_output(options), report)


def plan_lines(options: BuildOptions) -> list[str]:
    """What a build would do and take, in words, without doing it; raises UserError for what it would refuse."""
    with export_extra():
        from dexport.exporter.estimate import prepare, require_memory
        from dexport.exporter.plan import plan

        prepared = prepare(plan(options))
        require_memory(prepared)
        found = [(made.estimate(prepared.plan), made.split.size) for made in prepared.outlines]
        words = prepared.plan.lines()
    return words + [line for estimate, (height, width) in found for line in estimate_lines(estimate, f"{height}x{width}")]


def estimated(options: BuildOptions) -> list[tuple[Estimate, Size]]:
    """What a build would take on its target, per size; raises UserError as a build does, but for its memory."""
    with export_extra():
        from dexport.exporter.estimate import prepare
        from dexport.exporter.plan import plan

        prepared = prepare(plan(options))
        return [(made.estimate(prepared.plan), made.split.size) for made in prepared.outlines]


@contextmanager
def export_extra() -> Iterator[None]:
    """Turns a missing package of the extra `export` into an error that names it."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = error.name or ""
        if name.partition(".")[0] == "dexport":
            raise
        fix = "run: pip install 'dexport[export]'"
        raise UserError("building", expected=f"the package {name}", got="it is not installed", fix=fix) from error
