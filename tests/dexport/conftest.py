"""A bundle that runs, made once from a tiny pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipelines_pixart import tiny_pixart


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pixart(tmp_path_factory.mktemp("pixart"))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps or three, with golden outputs."""
    from dexport import build

    return build(tiny_pipeline, target="cpu", output=tmp_path_factory.mktemp("bundle") / "tiny.dxb", steps=[2, 3], batch=2)
