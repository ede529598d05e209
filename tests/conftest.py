"""Options that every test can ask for, and the tiny pipeline and bundle that many tests share."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.exporter.pipelines.checks import Captured


_LONGEST = (
    "tests/test_readme.py",
    "tests/runtime/cpp/test_tokenizer.py",  # builds the C++ runtime, on all cores that are free
    "tests/exporter/test_families.py",
    "tests/exporter/test_build.py",
    "tests/exporter/pipelines/test_flow_bundles.py",
    "tests/exporter/pipelines/test_wan.py",
    "tests/plugins/test_architectures.py",  # compiles every kernel seven times
)
"""Minutes each: they start first, so that no process waits for another's long file at the end."""


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # pytest-xdist would start with the files that have the most tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: index for index, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


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

    return _made_once(tmp_path_factory, "pixart", tiny_pixart)


@pytest.fixture(scope="session")
def pixart_cpu(pixart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle for the target cpu: 20 or 4 steps, 16x16 or 16x24 pixels, with golden outputs."""
    from dexport.exporter.build import build
    from dexport.exporter.options import BuildOptions

    options = BuildOptions(model=str(pixart), target="cpu", steps=(20, 4), sizes=((16, 16), (16, 24)), batch=2)
    return _made_once(tmp_path_factory, "cpu.dxb", lambda path: build(options, path))


def _made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Path]) -> Path:
    """What `make` writes at the path it gets: by the first process of pytest-xdist that asks, which put their folders side by side."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    made = shared / f"{name}.made"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            make(shared / name)
            made.touch()
    return shared / name


@pytest.fixture(scope="session")
def pixart_captured(pixart: Path) -> Captured:
    """Its components as graphs, beside the models of diffusers."""
    from tests.exporter.pipelines.checks import captured

    return captured(pixart)
