"""An environment as `pip install dexport` makes it: the runtime's packages and no other, without downloading anything.

The packages are links to those of the environment that runs the tests; dexport itself comes from a wheel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent
SOURCES = ("dexport", "exporter", "passes", "plugins", "runtime", "targets", "pyproject.toml", "README.md", "LICENSE")


def build_wheel(folder: Path) -> Path:
    """The wheel of this checkout, made in a copy so that nothing is left behind here."""
    copy = folder / "source"
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy(source, copy / name)
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def bare_environment(folder: Path, wheel: Path, extras: Iterable[str] = ()) -> Path:
    """Makes the environment; returns its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        (listing,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(listing).decode()
    wanted = [line.removeprefix("Requires-Dist: ") for line in text.splitlines() if line.startswith("Requires-Dist: ")]
    for name in _closure(wanted, ["", *extras]):
        for file in metadata.distribution(name).files or ():
            link = site / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not link.exists():
                os.symlink(str(metadata.distribution(name).locate_file(file.parts[0])), link)
    return python


def _closure(requirements: Iterable[str], extras: Iterable[str]) -> set[str]:
    """Names of all packages that these requirements bring, among those installed here."""
    names: set[str] = set()
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            names |= {requirement.name}
    pending = list(names)
    while pending:
        for text in metadata.requires(pending.pop()) or ():
            requirement = Requirement(text)
            if (requirement.marker is None or requirement.marker.evaluate({"extra": ""})) and requirement.name not in names:
                names.add(requirement.name)
                pending.append(requirement.name)
    return names
