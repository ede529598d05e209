"""Checks the build kit of a Jetson and adds what a device needs that has no dexport.

TensorRT chooses kernels by timing them, so an engine is built on the very kind of board that runs it, with the board's own
TensorRT; there is no cross-compilation. `dexport finalize` does that there. Where dexport cannot be installed, the folder
``kit/`` in the bundle does it with bash alone: ``build.sh`` (the same trtexec commands, resumable), ``check.sh`` (is this the
right machine, and is there room?) and ``README.md`` for the person at the device. `dexport finalize --engines` then makes a finished
bundle of its engines, anywhere.

A kit whose models have nodes of dexport's plugins has their sources too, in ``plugins/``: the kernels that the models were written for.

What was executed and what was not: see ``runtime/builders/tensorrt.py`` for the flags; the shape rules below were read in
sampleEngines.cpp of TensorRT 10.3. The scripts run in the tests against a stand-in for trtexec; they have not run on a Jetson.
"""

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx

from dexport.errors import Failure
from dexport.exporter.engines import jetson_scripts as scripts
from dexport.exporter.legality import Problem, check_onnx_for_tensorrt
from dexport.exporter.plugin_nodes import plugins_of
from dexport.runtime.builders.builder import Profile, Range
from dexport.runtime.builders.plugins import nvcc_arguments, plugin_folder, plugin_manifest, plugin_sources
from dexport.runtime.builders.tensorrt import trtexec_flags
from dexport.runtime.manifest import Plugin
from dexport.targets.target import Target

KIT_FOLDER, PLUGIN_FOLDER = "kit", "plugins"
ENGINE_FOLDER = "engines"

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_INPUT_NAME = re.compile(r"[A-Za-z0-9_./:-]+")  # trtexec splits shapes at commas and quotes, and expands asterisks


@dataclass(frozen=True)
class KitComponent:
    """One ONNX file that becomes one engine.

    Attributes:
        name: of the engine file, without suffix.
        onnx: path of the model inside the bundle, with forward slashes.
        profiles: optimization profiles in the order of their index; each has a range for every input with an unknown size.
            Empty for a model whose sizes are all fixed.
        weight_bytes: size of its weights, for the checks of memory and disk.
        data: paths of its other files inside the bundle: weights outside of the ONNX file.
    """

    name: str
    onnx: str
    profiles: tuple[Profile, ...]
    weight_bytes: int
    data: tuple[str, ...] = ()


def write_plugins(bundle: Path, components: Sequence[KitComponent], target: Target) -> tuple[Plugin, ...]:
    """Writes the sources of the plugins that the models need into ``plugins/`` of a bundle folder; headers that they share once."""
    used = frozenset[str]().union(*(plugins_of(bundle / component.onnx, target.plugins) for component in components))
    found = []
    for name in sorted(used):
        sources = plugin_sources(name)
        for relative, path in sources.items():
            place = bundle / PLUGIN_FOLDER / relative
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        found.append(Plugin(name=name, files=tuple(f"{PLUGIN_FOLDER}/{relative}" for relative in sources)))
    return tuple(found)


def write_kit(bundle: Path, components: Sequence[KitComponent], target: Target, plugins: Sequence[Plugin] = ()) -> tuple[str, ...]:
    """Writes ``kit/`` into a bundle folder that already holds the ONNX files.

    Args:
        bundle: the folder; paths in `components` are relative to it.
        components: in the order in which to build.
        target: a Jetson.
        plugins: whose sources the bundle has, see `write_plugins`.

    Returns:
        Paths of the files written, relative to `bundle`, sorted.

    Raises:
        UserError: if dexport does not build for this target.
        Failure: if a model is not legal for the target's TensorRT, a profile does not fit its model, or a name cannot be
            handed to trtexec.
    """
    target.require_buildable()
    if target.tensorrt is None or target.jetpack is None:
        raise Failure(f"target {target.id}", expected="a Jetson", got=target.backend, fix="build engines with the backend of this target")
    for component in components:
        _check_component(bundle, component, target)
    kit = bundle / KIT_FOLDER
    kit.mkdir(parents=True, exist_ok=True)
    written = []
    commands = [scripts.Engine(item.name, item.onnx, item.data, _flags(item, target)) for item in components]
    texts = {
        "build.sh": scripts.build_script(commands, [_library(plugin, target) for plugin in plugins]),
        "check.sh": scripts.check_script(target, [item.weight_bytes for item in components]),
        "README.md": scripts.readme(target, commands, plugins=bool(plugins)),
    }
    for name, text in texts.items():
        path = kit / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755 if name.endswith(".sh") else 0o644)
        written.append(path)
    return tuple(sorted(path.relative_to(bundle).as_posix() for path in written))


def _flags(component: KitComponent, target: Target) -> tuple[str, ...]:
    """The flags that depend on the model, quoted for the shell."""
    return tuple(map(shlex.quote, trtexec_flags(component.profiles, target)))


def _library(plugin: Plugin, target: Target) -> scripts.Library:
    folder = Path(PLUGIN_FOLDER) / plugin.name
    flags = nvcc_arguments(folder, [str(target.sm)], plugin_manifest(plugin_folder(plugin.name)), tensorrt=True)
    return scripts.Library(plugin.name, plugin.files, tuple(map(shlex.quote, flags)))


def _check_component(bundle: Path, component: KitComponent, target: Target) -> None:
    if not _FILE_NAME.fullmatch(component.name):
        raise Failure(f"component {component.name!r}", expected="letters, digits, _ . -", got=component.name, fix="rename it")
    for file in (component.onnx, *component.data):
        inside = PurePosixPath(file)
        if inside.is_absolute() or ".." in inside.parts or not all(_FILE_NAME.fullmatch(part) for part in inside.parts):
            raise Failure(f"component {component.name}", expected="a plain path inside the bundle", got=file, fix="move the model")
    assert target.tensorrt is not None
    path = bundle / component.onnx
    version = (target.tensorrt[0], target.tensorrt[1])
    problems = check_onnx_for_tensorrt(path, tensorrt=version, opset_max=target.onnx_opset, plugins=target.plugins)
    if problems:
        raise _illegal(component, problems)
    _check_profiles(path, component)


def _illegal(component: KitComponent, problems: list[Problem]) -> Failure:
    first = problems[0]
    more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
    return Failure(f"{component.onnx}, {first.where}", expected=first.expected, got=first.got + more, fix=first.fix)


def _check_profiles(path: Path, component: KitComponent) -> None:
    """trtexec builds a missing size as 1 with no more than a warning, and rejects shapes for a model that has none to choose."""
    graph = onnx.load(str(path), load_external_data=False).graph
    initializers = {tensor.name for tensor in graph.initializer}
    sizes = {value.name: _sizes(value) for value in graph.input if value.name not in initializers}
    free = {name for name, dims in sizes.items() if None in dims}
    where = f"component {component.name}"
    if bool(free) != bool(component.profiles):
        expected = f"profiles for {', '.join(sorted(free))}" if free else "no profiles, for all sizes are fixed"
        raise Failure(where, expected=expected, got=f"{len(component.profiles)} profiles", fix="give the sizes that the bundle declares")
    for index, profile in enumerate(component.profiles):
        if profile.keys() != free:
            expected = f"a range for each input with an unknown size ({', '.join(sorted(free))})"
            raise Failure(f"{where}, profile {index}", expected=expected, got=", ".join(sorted(profile)) or "none", fix="list these inputs")
        for name, shapes in profile.items():
            _check_range(f"{where}, profile {index}, input {name}", name, shapes, sizes[name])


def _sizes(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in dims)


def _check_range(where: str, name: str, shapes: Range, sizes: tuple[int | None, ...]) -> None:
    if not _INPUT_NAME.fullmatch(name):
        raise Failure(where, expected="letters, digits and _ . / : -, which trtexec can read", got=name, fix="rename the input")
    if any(len(shape) != len(sizes) for shape in shapes):
        raise Failure(where, expected=f"{len(sizes)} dimensions", got=json.dumps(shapes), fix="give shapes of the model's rank")
    for axis, size in enumerate(sizes):
        low, usual, high = (shape[axis] for shape in shapes)
        if not 1 <= low <= usual <= high or (size is not None and (low, high) != (size, size)):
            expected = (
                f"1 <= smallest <= usual <= largest on axis {axis}" if size is None else f"{size} on axis {axis}, which the model fixes"
            )
            raise Failure(where, expected=expected, got=f"{low}, {usual}, {high}", fix="correct the profile")
