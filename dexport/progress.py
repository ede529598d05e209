"""Progress of long work on stderr: a bar on a terminal, one line per stage where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[str, float | None], None]


@contextmanager
def reporting() -> Iterator[Report]:
    """Gives a function to call with what is going on and the fraction of the whole that is done (None: not known)."""
    if sys.stderr.isatty():
        with _bar() as report:
            yield report
    else:
        yield _lines()


def _lines() -> Report:
    start, last = time.monotonic(), None

    def report(stage: str, fraction: float | None) -> None:
        nonlocal last
        if stage != last:
            print(f"[{time.monotonic() - start:7.1f} s] {stage}", file=sys.stderr, flush=True)
            last = stage

    return report


@contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        def report(stage: str, fraction: float | None) -> None:
            bars.update(task, description=stage, total=None if fraction is None else 1.0, completed=fraction or 0.0)

        yield report
