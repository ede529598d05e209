"""`dexport doctor`: what this machine can build and run, what is missing, and the command that mends it."""

from __future__ import annotations

import dataclasses
import importlib
import json
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

import click

from dexport.columns import amount, columns
from dexport.errors import UserError
from dexport.machine import Gpu, Machine, this_machine
from dexport.runtime.builders.plugins import find_nvcc
from dexport.runtime.builders.tensorrt import find_trtexec
from dexport.runtime.finalize.plugins import find_headers
from dexport.runtime.trust import default_trust_file, trusted_hashes
from dexport.targets.tensorrt import RTX_COMPUTE_CAPABILITIES

_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:[^;]*?>=\s*(?P<least>[0-9.]+))?[^;]*;.*extra == ['\"](?P<extra>[\w-]+)['\"]")
_INSTEAD = {"onnxruntime": "onnxruntime-gpu"}  # a package that does as well
_GPU_FIX = "use a machine with an NVIDIA GPU and its driver"


@dataclass(frozen=True)
class Ability:
    """One thing that this machine can or cannot do.

    Attributes:
        name: what it is.
        able: whether it can.
        detail: what is missing; empty where nothing is.
        fix: the command or step that mends it; empty where nothing is missing.
    """

    name: str
    able: bool
    detail: str
    fix: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `dexport doctor` finds; `packages` are those of the extras that are installed, with their versions."""

    dexport: str
    python: str
    machine: Machine
    packages: dict[str, str]
    build: tuple[Ability, ...]
    run: tuple[Ability, ...]
    settings: tuple[Ability, ...]


def doctor_command(as_json: bool) -> None:
    """Prints the diagnosis."""
    diagnosis = diagnose()
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(diagnosis), indent=1))
        return
    for line in lines(diagnosis):
        click.echo(line)


def diagnose() -> Diagnosis:
    """Looks at this machine and at the packages of this Python."""
    machine = this_machine()
    extras = requirements(metadata.requires("dexport") or [])
    known = sorted({package for wanted in extras.values() for package in wanted})
    return Diagnosis(
        dexport=metadata.version("dexport"),
        python=platform.python_version(),
        machine=machine,
        packages={package: version for package in known if (version := _installed(package)) is not None},
        build=_building(extras),
        run=_running(extras, machine.gpu),
        settings=(_trust(),),
    )


def lines(diagnosis: Diagnosis) -> list[str]:
    """The diagnosis in words."""
    machine = diagnosis.machine
    gpu = machine.gpu
    facts = [
        ("dexport", f"{diagnosis.dexport}, Python {diagnosis.python}, {machine.system}"),
        ("processor", f"{machine.processor}, {machine.cores} cores, {' '.join(machine.instructions) or 'no fast int8 or bf16'}"),
        ("memory", amount(machine.memory, "B")),
        ("disk", f"{amount(machine.disk_free, 'B')} free here"),
        ("GPU", f"{gpu.name}, SM {gpu.sm / 10:.1f}" if gpu.sm is not None else f"none: {gpu.reason}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in diagnosis.packages.items()) or "those of the runtime only"),
    ]
    if machine.jetson:
        facts.append(("board", machine.jetson))
    result = ["machine", *columns(facts, indent="  ")]
    for title, abilities in (("build for", diagnosis.build), ("run", diagnosis.run), ("settings", diagnosis.settings)):
        result += [title, *columns([_cells(ability) for ability in abilities], indent="  ")]
    return result


def _cells(ability: Ability) -> tuple[str, ...]:
    return "yes" if ability.able else "no", ability.name, ability.detail, ability.fix


def requirements(lines: Sequence[str]) -> dict[str, dict[str, str]]:
    """Extra -> package -> least version, from the requirements of an installed package ("torch>=2.13; extra == 'export'")."""
    extras: dict[str, dict[str, str]] = {}
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is not None:
            extras.setdefault(match["extra"], {})[match["name"]] = match["least"] or "0"
    return extras


def _building(extras: Mapping[str, Mapping[str, str]]) -> tuple[Ability, ...]:
    export = extras["export"]
    return (
        _packages("cpu", {**export, **extras["openvino"]}, "export,openvino"),
        _packages("onnxruntime-cpu, onnxruntime-cuda", export, "export"),
        _packages("RTX GPUs (TensorRT-RTX)", {**export, **extras["rtx"]}, "export,rtx"),
        _packages("Jetson (build kits)", export, "export"),
    )


def _running(extras: Mapping[str, Mapping[str, str]], gpu: Gpu) -> tuple[Ability, ...]:
    rtx = _packages("RTX bundles", extras["rtx"], "rtx")
    classic = _packages("Jetson bundles (TensorRT)", extras["tensorrt"], "tensorrt", imports="tensorrt")
    return (
        _packages("cpu bundles", extras["openvino"], "openvino"),
        _packages("onnxruntime-cpu bundles", extras["onnxruntime"], "onnxruntime"),
        _with_gpu(_packages("onnxruntime-cuda bundles", extras["onnxruntime-gpu"], "onnxruntime-gpu"), gpu),
        _with_gpu(rtx, gpu, RTX_COMPUTE_CAPABILITIES),
        _with_gpu(classic, gpu),
        _with_gpu(_trtexec(), gpu),
        _found("plugins of Jetson kits: nvcc", find_nvcc),
        _found("plugins of Jetson kits: TensorRT's headers", find_headers),
        _packages("write .mp4", extras["video"], "video"),
    )


def _trtexec() -> Ability:
    """Whether `dexport finalize` can build a Jetson's engines; that they fit the kit is for it to check."""
    if find_trtexec():
        return Ability("finish Jetson kits", True, "", "")
    return Ability("finish Jetson kits", False, "no trtexec", "sudo apt-get install nvidia-jetpack, or set TRTEXEC")


def _found(name: str, find: Callable[[], object]) -> Ability:
    """Whether something is on this machine, by what looks for it and says how to get it."""
    try:
        find()
    except UserError as error:
        return Ability(name, False, error.got, error.fix)
    return Ability(name, True, "", "")


def _packages(name: str, wanted: Mapping[str, str], extras: str, imports: str | None = None) -> Ability:
    """Whether packages are installed and new enough; `imports` is a module that must really load (some wheels are empty)."""
    missing = []
    for package, least in wanted.items():
        version = _installed(package) or _installed(_INSTEAD.get(package, package))
        if version is None:
            missing.append(f"no {package}")
        elif _numbers(version) < _numbers(least):
            missing.append(f"{package} {version} is older than {least}")
    if imports is not None and not missing and not _loads(imports):
        missing.append(f"{imports} is installed but does not load")
    if missing:
        return Ability(name, False, ", ".join(missing), f"pip install 'dexport[{extras}]'")
    return Ability(name, True, "", "")


def _with_gpu(ability: Ability, gpu: Gpu, sms: frozenset[int] | None = None) -> Ability:
    """The same ability where it needs a GPU too, one with any of these compute capabilities."""
    if gpu.sm is not None and (sms is None or gpu.sm in sms):
        return ability
    reason = gpu.reason if gpu.sm is None else f"TensorRT-RTX has no SM {gpu.sm / 10:.1f}"
    detail = reason if ability.able else f"{ability.detail}; {reason}"
    return Ability(ability.name, False, detail, f"{_GPU_FIX}{f'; there: {ability.fix}' if ability.fix else ''}")


def _trust() -> Ability:
    file = default_trust_file()
    name = f"trusted machine code ({file})"
    try:
        return Ability(name, True, f"{len(trusted_hashes(file))} files", "")
    except UserError as error:
        return Ability(name, False, error.got, error.fix)
    except OSError as error:
        return Ability(name, False, error.strerror or "unreadable", f"make {file} readable")


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _loads(module: str) -> bool:
    try:
        importlib.import_module(module)
    except Exception:  # a stub or a library that does not fit this machine may raise anything
        return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """The release part of a version: "2.13.0+cpu" is (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
