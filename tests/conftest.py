"""Options that every test can ask for, and the tiny pipeline and bundle that many tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.exporter.pipelines.checks import Captured


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden from what the code does now")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What backends compile goes to a folder of this session, not to the user's."""
    before = os.environ.get("DEXPORT_CACHE_DIR")
    os.environ["DEXPORT_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["DEXPORT_CACHE_DIR"]
    else:
        os.environ["DEXPORT_CACHE_DIR"] = before


@pytest.fixture(scope="session")
def pixart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny PixArt pipeline directory: read it, never write to it."""
    from tests.pipelines_pixart import tiny_pixart

    return tiny_pixart(tmp_path_factory.mktemp("pixart"))


@pytest.fixture(scope="session")
def pixart_cpu(pixart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle for the target cpu: 20 or 4 steps, 16x16 or 16x24 pixels, with golden outputs."""
    from dexport.exporter.build import build
    from dexport.exporter.options import BuildOptions

    options = BuildOptions(model=str(pixart), target="cpu", steps=(20, 4), sizes=((16, 16), (16, 24)), batch=2)
    return build(options, tmp_path_factory.mktemp("bundles") / "cpu.dxb")


@pytest.fixture(scope="session")
def pixart_captured(pixart: Path) -> Captured:
    """Its components as graphs, beside the models of diffusers."""
    from tests.exporter.pipelines.checks import captured

    return captured(pixart)
