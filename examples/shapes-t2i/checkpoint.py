"""Resumable training: a state file that is always whole, and the learning rate as a function of the step alone."""

import os
from pathlib import Path
from typing import Any

import torch


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` so that a kill at any moment leaves the old file or the new one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load(path: Path) -> dict[str, Any] | None:
    """Return the saved state, or None when training starts from nothing."""
    return torch.load(path, weights_only=True) if path.exists() else None


def learning_rate(step: int, steps: int, peak: float, warm_up: int) -> float:
    """Linear warm-up to ``peak``, constant, and over the last quarter a line down to 1 % of it.

    Until the last quarter begins the rate does not depend on ``steps``: a run may be made shorter or longer on the way and still
    be the run that was asked for with the final ``steps`` from the start.
    """
    if step < warm_up:
        return peak * (step + 1) / warm_up
    left = (steps - step) / (steps / 4)
    return peak * max(0.01, min(1.0, left))
