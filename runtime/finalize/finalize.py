"""`dexport finalize`: builds the engines of a kit on the device, tries them out, and writes the finished bundle."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from dexport.errors import Failure, UserError
from dexport.runtime.backends.openvino import OpenVinoEngine
from dexport.runtime.builders.builder import Builder
from dexport.runtime.builders.plugins import library_name
from dexport.runtime.builders.tensorrt import plugin_flags
from dexport.runtime.bundle import Bundle, open_bundle
from dexport.runtime.bundle_writer import BundleWriter, copy_file
from dexport.runtime.device import Device, free_memory, this_device
from dexport.runtime.disk import disk_full, is_full
from dexport.runtime.engines import Engine, variant_for
from dexport.runtime.finalize.output import check_place
from dexport.runtime.finalize.plugins import PLUGIN_FOLDER, compile_library, library_key, source_hashes, with_own_sources
from dexport.runtime.finalize.prebuilt import take
from dexport.runtime.finalize.precision import Precisions, compare_precisions
from dexport.runtime.finalize.process import last_words, run_watched
from dexport.runtime.finalize.task import Task, builder_for, key_of_variant, kit_variants, tasks_of
from dexport.runtime.finalize.work import LOG, Made, WorkFolder, key_of
from dexport.runtime.manifest import Manifest, Plugin
from dexport.runtime.selftest import Check, selftest
from dexport.runtime.trust import default_trust_file, trust, trusted_hashes
from dexport.targets.catalogue import find
from dexport.targets.tensorrt import dotted

Report = Callable[[str, float | None], None]
"""Called with what is going on and the fraction of the whole that is done (None: not known)."""

_ENGINES, _REPORT, _KIT_FOLDER = "engines", "report/finalize.json", "kit/"
_SHARE_OF_BUILDING = 0.9
_FULL_BYTES = 1 << 20
"""A build that fails with less than this free on the disk is taken to have filled it."""


@dataclass(frozen=True)
class Finished:
    """What was done.

    Attributes:
        path: of the bundle.
        built, kept: names of the engines that were built now, and of those that an earlier run had finished.
        checks: of the golden runs; empty where there was nothing to run.
        warnings: what the user should know: products that are not computed as asked, little memory, nothing to test with.
    """

    path: Path
    built: tuple[str, ...]
    kept: tuple[str, ...]
    checks: tuple[Check, ...]
    warnings: tuple[str, ...]


def finalize(
    kit: Path,
    out: Path,
    *,
    device: Device | None = None,
    test: bool = True,
    engines: Path | None = None,
    trust_code: bool = False,
    report: Report = lambda stage, done: None,
) -> Finished:
    """Makes a finished bundle of a kit. Interrupted, it goes on where it stopped: finished engines are kept in OUT.finalize.

    Machine code is trusted as soon as it is compiled, and only then: an engine found in OUT.finalize that the user does not trust is
    built again, wherever it came from.

    Args:
        kit: a bundle whose engines are still to be built.
        out: the finished bundle; NAME.dxb for one file, else a folder.
        device: this machine, if somebody has looked at it already.
        test: repeat the golden runs; an output that differs too much is an error, and nothing is written.
        engines: take engines that kit/build.sh has built, instead of building here. They are neither tested nor trusted.
        trust_code: compile sources of plugins that are not dexport's own.

    Raises:
        UserError: not a kit, a kit for another device, something missing on this one, code that is not trusted, or `out` holds something
            else than a bundle.
        Failure: a build failed, the disk is full, a golden run gave something else.
    """
    bundle = with_own_sources(open_bundle(kit, trust=trust_code))
    check_place(kit, out)
    device = device or this_device()
    builder = builder_for(bundle.manifest, device)
    if engines is None:
        builder.check(device)
        if test:
            _require_runner(builder)
    tasks = tasks_of(bundle.manifest, builder)
    with WorkFolder(out) as work:
        run = _Run(bundle, builder, tasks, work, engines, report)
        made = run.build_all()
        report("write the bundle", _SHARE_OF_BUILDING)
        finished = _write(run, made, out, device, test=test and engines is None)
        work.remove()
    report("done", 1.0)
    return finished


@dataclass
class _Run:
    """One finalize: what it works on, and what it has to tell."""

    bundle: Bundle
    builder: Builder
    tasks: Mapping[str, Task]
    work: WorkFolder
    engines: Path | None
    report: Report
    libraries: dict[str, Made] = dataclasses.field(default_factory=dict)
    built: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def build_all(self) -> dict[str, Made]:
        """Key -> engine, for every task; the libraries of plugins come before them."""
        for plugin in self.bundle.manifest.plugins if self.builder.native else ():
            self.libraries[plugin.name] = self._library(plugin)
        made = self._finished()
        todo = [task for key, task in self.tasks.items() if key not in made]
        self._check_room(todo)
        for index, task in enumerate(todo):
            self.report(f"build {task.name} ({index + 1} of {len(todo)})", _SHARE_OF_BUILDING * index / len(todo))
            made[task.key] = self._build(task)
            self.built.append(task.name)
            self._forget_inputs(task, todo[index + 1 :])
            self.report(_told(task.name, made[task.key]), _SHARE_OF_BUILDING * (index + 1) / len(todo))
        return made

    def _finished(self) -> dict[str, Made]:
        """Engines of an earlier run."""
        found = {
            key: self._of_earlier(task.name, key, self._kept_files(task), self.builder.files(task.name)) for key, task in self.tasks.items()
        }
        return {key: made for key, made in found.items() if made is not None}

    def _of_earlier(self, name: str, key: str, files: Sequence[str], code: Sequence[str]) -> Made | None:
        """What an earlier run made, if its code is trusted; nothing with --engines: copying again takes no longer than comparing."""
        made = None if self.engines is not None else self.work.finished(name, key, files)
        if made is None or (self.builder.native and not trusted_hashes(default_trust_file()) >= self._code(made, code).keys()):
            return None
        return made

    def _kept_files(self, task: Task) -> tuple[str, ...]:
        return (*self.builder.files(task.name), *self.builder.layer_files(task.name))

    def _code(self, made: Made, files: Sequence[str]) -> dict[str, str]:
        """sha256 of files, and what they are."""
        return {made.hashes[file]: f"{self.bundle.path.name}: {file}" for file in files}

    def _library(self, plugin: Plugin) -> Made:
        """The library of a plugin for the GPU of the kit's target."""
        manifest, file = self.bundle.manifest, library_name(plugin.name)
        name, sm, tensorrt = file.removesuffix(".so"), find(manifest.target).sm, self.tensorrt
        assert sm is not None
        key = library_key(manifest, plugin, sm, tensorrt)
        if (made := self._of_earlier(name, key, [file], [file])) is not None:
            return made
        self.report(f"compile the plugin {plugin.name}", None)

        def build(folder: Path) -> dict[str, Any]:
            if self.engines is None:
                return compile_library(self.bundle, plugin, sm, tensorrt, folder)
            return self._take_library(plugin, name, folder)

        return self._made(name, key, [file], [file], build)

    def _take_library(self, plugin: Plugin, name: str, folder: Path) -> dict[str, Any]:
        assert self.engines is not None
        manifest = self.bundle.manifest
        hashes = [manifest.files[file].sha256 for file in plugin.files]
        return take(self.engines, name, [library_name(plugin.name)], hashes, None, find(manifest.target), folder)

    @property
    def tensorrt(self) -> str:
        """The version that builds the engines; of engines built elsewhere what the target has."""
        target = find(self.bundle.manifest.target)
        return self.builder.tools["tensorrt"] if self.engines is None else dotted(target.tensorrt or ())

    def _check_room(self, todo: list[Task]) -> None:
        largest = max((task.bytes for task in todo), default=0)
        needed, free = self.builder.memory_needed(largest), free_memory()
        if todo and self.engines is None and 0 < free < needed:
            self.warn(f"{free >> 20} MiB of memory are free, building takes about {needed >> 20} MiB: stop other programs or add swap")
        disk = shutil.disk_usage(self.work.path).free
        wanted = sum(task.bytes for task in self.tasks.values()) + sum(task.bytes for task in todo)  # engines, and the bundle of them
        if disk < wanted:
            raise self._no_room(f"{wanted} bytes free to build {len(todo)} engines", disk)

    def _no_room(self, expected: str, free: int) -> Failure:
        return disk_full(self.work.path, expected, f"{free} bytes free", "and run it again: finished engines are kept")

    def warn(self, text: str) -> None:
        """Tells the user now, and again at the end."""
        self.warnings.append(text)
        self.report(f"warning: {text}", None)

    def _build(self, task: Task) -> Made:
        build = self._compile if self.engines is None else self._take
        return self._made(task.name, task.key, self._kept_files(task), self.builder.files(task.name), partial(build, task))

    def _made(self, name: str, key: str, files: Sequence[str], code: Sequence[str], build: Callable[[Path], dict[str, Any]]) -> Made:
        """Builds something in a folder of its own; machine code that is built here is trusted from then on."""
        try:
            made = self.work.make(name, key if self.engines is None else key_of("built elsewhere", key), files, build)
            if self.builder.native and self.engines is None:
                trust(self._code(made, code), default_trust_file())
            return made
        except OSError as error:
            if is_full(error):
                raise self._no_room(f"room for the engine {name}", shutil.disk_usage(self.work.path).free) from error
            raise Failure(str(self.work.path), expected=f"to build {name} there", got=str(error), fix="check the disk") from error

    def _compile(self, task: Task, folder: Path) -> dict[str, Any]:
        plugins = plugin_flags([made.folder / library_name(name) for name, made in self.libraries.items()])
        command = self.builder.command(self._inputs(task), folder, task.name, (*task.options, *plugins))
        usage = run_watched(command, folder / LOG)
        missing = [file for file in self._kept_files(task) if not (folder / file).exists()]
        free = shutil.disk_usage(folder).free
        if (usage.failed or missing) and free < _FULL_BYTES:
            raise self._no_room(f"room for the engine {task.name}", free)
        if usage.failed or missing:
            got = f"{usage.failed or 'none'} after {usage.seconds:.0f} s: {last_words(folder / LOG)}"
            raise Failure(task.name, expected="an engine", got=got, fix=f"read {folder / LOG}; finished engines are kept")
        return {"seconds": usage.seconds, "peak_memory": usage.peak_memory, "least_free": usage.least_free}

    def _take(self, task: Task, folder: Path) -> dict[str, Any]:
        assert self.engines is not None
        manifest = self.bundle.manifest
        hashes = [*(manifest.files[file].sha256 for file in task.files), *source_hashes(manifest)]
        return take(self.engines, task.name, self._kept_files(task), hashes, task.options, find(manifest.target), folder)

    def _inputs(self, task: Task) -> Path:
        """Path of the ONNX file with its weights beside it; out of a .dxb they are copied, for no compiler reads inside one."""
        if self.bundle.path.is_dir():
            return self.bundle.file(task.files[0])
        for file in task.files:
            target = self.work.path / "inputs" / file
            target.unlink(missing_ok=True)
            copy_file(self.bundle, file, target)
        return self.work.path / "inputs" / task.files[0]

    def _forget_inputs(self, task: Task, later: list[Task]) -> None:
        wanted = {file for other in later for file in other.files}
        for file in set(task.files) - wanted:
            (self.work.path / "inputs" / file).unlink(missing_ok=True)


def _write(run: _Run, made: Mapping[str, Made], out: Path, device: Device, *, test: bool) -> Finished:
    """Puts everything together, tries it out, and gives it its name."""
    manifest = run.bundle.manifest
    models = {file for variant in kit_variants(manifest) for file in variant.files}
    models |= {file for plugin in manifest.plugins for file in plugin.files}
    with BundleWriter(out) as writer:
        for relative in manifest.files:
            if relative not in models and not relative.startswith(_KIT_FOLDER):
                copy_file(run.bundle, relative, writer.directory / relative)
        for key, task in run.tasks.items():
            for file in run.builder.files(task.name):
                _link(made[key].folder / file, writer.directory / _ENGINES / file)
        for name, library in run.libraries.items():
            _link(library.folder / library_name(name), writer.directory / PLUGIN_FOLDER / library_name(name))
        precisions = {
            key: compare_precisions(task.asked, run.builder.layers(made[key].folder, task.name)) for key, task in run.tasks.items()
        }
        finished = _finished(run, manifest, precisions, device)
        checks: list[Check] = []
        if test and manifest.golden:
            run.report("test against the golden outputs", _SHARE_OF_BUILDING)
            checks = _tested(run, writer.opened(finished), precisions)
            finished = _finished(run, manifest, precisions, device)
        elif test:
            run.warn("the kit has no golden inputs and outputs: the result is not tested")
        for key, task in run.tasks.items():
            if warning := precisions[key].warning(task.name):
                run.warn(warning)
        path = writer.directory / _REPORT
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(_record(run, made, checks, device), indent=1), encoding="utf-8")
        result = writer.finish(finished)
    kept = tuple(task.name for task in run.tasks.values() if task.name not in run.built)
    return Finished(result, tuple(run.built), kept, tuple(checks), tuple(run.warnings))


def _finished(run: _Run, manifest: Manifest, precisions: Mapping[str, Precisions], device: Device) -> Manifest:
    """The manifest with engines in the place of models."""
    components = {}
    for name, component in manifest.components.items():
        variants = []
        for variant in component.variants:
            if variant.is_kit:
                key = key_of_variant(manifest, variant, run.builder)
                files = tuple(f"{_ENGINES}/{file}" for file in run.builder.files(run.tasks[key].name))
                kernels = precisions[key].to_json() if precisions[key].layers else {}
                if run.builder.native:
                    kernels["accelerators"] = [f"sm{find(manifest.target).sm}"]
                variant = dataclasses.replace(
                    variant, artifact=files[0], format=run.builder.format, files=files, native=run.builder.native, kernels=kernels or None
                )
            variants.append(variant)
        components[name] = dataclasses.replace(component, variants=tuple(variants))
    sm = find(manifest.target).sm
    plugins = tuple(
        Plugin(name=name, files=(f"{PLUGIN_FOLDER}/{library_name(name)}",), sm=sm, tensorrt=run.tensorrt) for name in run.libraries
    )
    return dataclasses.replace(manifest, backend=run.builder.format, components=components, plugins=plugins)


def _tested(run: _Run, bundle: Bundle, precisions: dict[str, Precisions]) -> list[Check]:
    """Runs the golden inputs; adds to `precisions` what only an engine that has run tells."""

    def look(name: str, engine: Engine) -> None:
        if isinstance(engine, OpenVinoEngine):
            variant = variant_for(run.bundle, name, bundle.manifest.sizes[0])
            key = key_of_variant(run.bundle.manifest, variant, run.builder)
            precisions[key] = compare_precisions(run.tasks[key].asked, engine.layers())

    checks = selftest(bundle, look)
    bad = [f"{check.name} {check.error:.3g} (at most {check.tolerance:g})" for check in checks if not check.passed]
    if bad:
        fix = "report it; `--no-test` writes the bundle all the same, finished engines are kept"
        raise Failure("golden test", expected="outputs as they were computed in PyTorch", got=f"relative errors: {', '.join(bad)}", fix=fix)
    return checks


def _record(run: _Run, made: Mapping[str, Made], checks: list[Check], device: Device) -> dict[str, Any]:
    """report/finalize.json: on what, with what and how long, for whoever asks later; of engines built elsewhere we know neither."""
    built_here = {"device": dataclasses.asdict(device), "tools": dict(run.builder.tools)} if run.engines is None else {}
    return {
        "dexport": metadata.version("dexport"),
        **built_here,
        "engines": {
            task.name: {
                "seconds": round(made[key].seconds, 3),
                "peak_memory_bytes": made[key].peak_memory,
                "least_free_memory_bytes": made[key].least_free,
            }
            for key, task in run.tasks.items()
        },
        "golden": [dataclasses.asdict(check) for check in checks],
        "warnings": run.warnings,
    }


def _told(name: str, made: Made) -> str:
    memory = f", at most {made.peak_memory >> 20} MiB of memory, {made.least_free >> 20} MiB free at the least" if made.peak_memory else ""
    return f"{name} built in {made.seconds:.1f} s{memory}"


def _require_runner(builder: Builder) -> None:
    if builder.format == "tensorrt" and importlib.util.find_spec("tensorrt") is None:
        fix = "run: sudo apt-get install python3-libnvinfer, or pass --no-test"
        raise UserError("golden test", expected="the Python package tensorrt", got="it is not installed", fix=fix)


def _link(source: Path, target: Path) -> None:
    """A second name for a finished engine, so that it stays finished if writing the bundle fails; a copy where there are no links."""
    target.parent.mkdir(exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
