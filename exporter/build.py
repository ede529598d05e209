"""`dexport build`: a pipeline directory becomes a bundle."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import safetensors.numpy
from tokenizers import Tokenizer

from dexport.errors import UserError
from dexport.exporter.build_recipe import apply_recipe
from dexport.exporter.build_report import with_report
from dexport.exporter.emit import Emitter, Ranges
from dexport.exporter.estimate import prepare, require_memory
from dexport.exporter.golden import fits, golden_of
from dexport.exporter.options import BuildOptions, Size
from dexport.exporter.plan import Plan, plan
from dexport.exporter.program import GUIDANCE_SCALE, GuidanceUse, Layout, compose
from dexport.exporter.solver import Solver
from dexport.exporter.source import source_hash
from dexport.exporter.split import Split
from dexport.exporter.text import tokenizer_json
from dexport.exporter.torch_pipeline import request_entries, text_entries
from dexport.exporter.workload import Workload
from dexport.passes.graph import Graph
from dexport.runtime.bundle_writer import BundleWriter, check_output, trust_own_code
from dexport.runtime.manifest import Golden, Guidance, JsonObject, Manifest, Model, ProgramEntry
from dexport.runtime.program import Program, program_to_json
from dexport.runtime.program_check import check_program
from dexport.runtime.request import Asked, request_buffers
from dexport.runtime.text import tokenize
from dexport.runtime.workload import WORKLOAD, workload_json

Report = Callable[[str, float | None], None]
"""Called with the stage, and the fraction of the whole build that is done (None if unknown)."""

GOLDEN_PROMPT = "a photograph of a red apple on a wooden table"


def build(options: BuildOptions, output: Path, report: Report = lambda stage, done: None) -> Path:
    """Builds a bundle at `output` (a folder, or one file if it ends in .dxb) and returns its path.

    Raises:
        UserError: the request cannot be met (see `plan`).
        Failure: something broke on the way; nothing is left at `output`.
    """
    check_output(output.resolve())
    decided = plan(options)
    tokenizers = {text.name: tokenizer_json(decided.directory, text) for text in decided.pipeline.texts}  # may refuse the model
    prepared = prepare(decided, report)
    require_memory(prepared)
    solvers, splits = prepared.solvers, list(prepared.splits)
    with ExitStack() as stack:
        writer = stack.enter_context(BundleWriter(output))
        emitter = stack.enter_context(Emitter(writer.directory, decided.target, decided.precision, decided.storage, options.kit))
        texts = _write_tokenizers(decided, tokenizers, writer.directory)
        quantized = None
        if decided.recipe is not None:
            scratch = Path(stack.enter_context(TemporaryDirectory(prefix="dexport-")))
            quantized = apply_recipe(decided, splits, solvers, scratch, report)
            before, splits = splits, [found.split for found in quantized.sizes]
        for index, split in enumerate(splits):
            _emit(decided, split, emitter, first=index == 0, report=report)
        emitter.finish()
        report("sampling programs", 0.8)
        programs = _write_programs(decided, splits, solvers, writer.directory, emitter)
        _write_workload(splits, programs, options.batch, writer.directory)
        golden: tuple[Golden, ...] = ()
        if options.golden == "auto":
            report("golden inputs and outputs", 0.85)
            golden = _golden(decided, splits[0], programs[0], texts, writer.directory)
        manifest = _manifest(decided, splits[0], emitter, programs, texts, golden)
        if quantized is not None:
            manifest = with_report(manifest, decided, before[0], quantized, programs[0][1], writer.directory)
        report("pack", 0.95)
        path = writer.finish(manifest)
    trust_own_code(path)
    report("done", 1.0)
    return path


def _emit(decided: Plan, split: Split, emitter: Emitter, *, first: bool, report: Report) -> None:
    batch, steps = decided.options.batch, (min(decided.steps), decided.steps[0], max(decided.steps) * 2)
    parts = 2 if decided.guided else 1

    def rows(*factors: int) -> Ranges:
        return Ranges(tuple((f, f * batch, f * batch) for f in factors), steps)

    denoiser = split.denoiser
    halves = (2, 1) if parts == 2 and decided.options.guidance_batching else (1,)
    prelude = rows(2, 1) if parts == 2 else rows(1)
    pieces: list[tuple[Graph | None, Ranges, Size | None]] = [(g, prelude, None) for g in split.encoders if first]
    pieces += [(denoiser.prompt, prelude, split.size), (denoiser.schedule, prelude, split.size)]
    pieces += [(denoiser.loop, rows(*halves), split.size), *((g, rows(1), split.size) for g in (*split.steps, *split.decoders))]
    present = [(g, r, s) for g, r, s in pieces if g is not None]
    for index, (graph, ranges, size) in enumerate(present):
        report(f"build {graph.name}", 0.3 + 0.5 * index / len(present))
        emitter.add(graph, ranges, size)


def _write_programs(
    decided: Plan, splits: list[Split], solvers: Mapping[tuple[Size, int], Solver], folder: Path, emitter: Emitter
) -> list[tuple[ProgramEntry, Program]]:
    """Writes a program and its tables for every size, number of steps, and with and without guidance."""
    written = []
    (folder / "programs").mkdir()
    for split in splits:
        layout = Layout(decided.pipeline, split.encoders, split.denoiser, {g.name: g for g in split.decoders})
        for steps in decided.steps:
            solver = solvers[split.size, steps]
            stem = f"{split.size[0]}x{split.size[1]}-{steps}"
            tables_file = f"programs/tables-{stem}.safetensors"
            for guided in (True, False) if decided.guided else (False,):
                options = decided.options
                guidance = GuidanceUse(guided, decided.guidance, options.guidance_interval, options.guidance_batching)
                name = f"program-{stem}" + ("-guided" if guided else "")
                program, tables = compose(layout, solver, split.size, guidance, name)
                check_program(program, emitter.components)
                (folder / f"programs/{name}.json").write_text(program_to_json(program))
                has_tables = bool(tables)
                if has_tables:
                    safetensors.numpy.save_file({n: np.ascontiguousarray(t) for n, t in tables.items()}, folder / tables_file)
                entry = ProgramEntry(
                    file=f"programs/{name}.json",
                    tables=tables_file if has_tables else None,
                    scheduler=solver.scheduler,
                    steps=steps,
                    size=split.size,
                    guided=guided,
                )
                written.append((entry, program))
    return written


def _write_workload(splits: Sequence[Split], programs: Sequence[tuple[ProgramEntry, Program]], batch: int, folder: Path) -> None:
    """Writes what every call of every program asks of a device."""
    workloads = {split.size: Workload(split) for split in splits}
    loads = (one for entry, program in programs for one in workloads[entry.size].loads(program, batch))
    (folder / WORKLOAD).write_bytes(workload_json(dict.fromkeys(loads)))


def _write_tokenizers(decided: Plan, tokenizers: Mapping[str, str], folder: Path) -> tuple[JsonObject, ...]:
    entries = text_entries(decided)
    for entry in entries:
        (folder / "tokenizer").mkdir(exist_ok=True)
        (folder / entry["tokenizer"]).write_text(tokenizers[entry["name"]], encoding="utf-8")
    return entries


def _golden(
    decided: Plan, split: Split, first: tuple[ProgramEntry, Program], texts: tuple[JsonObject, ...], folder: Path
) -> tuple[Golden, ...]:
    """A golden run of the first program, if the model fits into memory."""
    pieces = (*split.encoders, split.denoiser.prompt, split.denoiser.schedule, split.denoiser.loop, *split.steps, *split.decoders)
    graphs = tuple(g for g in pieces if g is not None)
    if not fits(graphs):
        return ()
    entry, program = first
    tokenizers = {t["name"]: Tokenizer.from_str((folder / t["tokenizer"]).read_text(encoding="utf-8")) for t in texts}
    asked = Asked([GOLDEN_PROMPT] if texts else None, None, None if texts else [1], {GUIDANCE_SCALE: decided.guidance})
    request = request_buffers(texts, request_entries(decided), program, entry.guided, asked, 1, lambda n, p: tokenize(tokenizers[n], p, n))
    tables = safetensors.numpy.load_file(folder / entry.tables) if entry.tables else {}
    return golden_of(graphs, program, tables, request, decided.precision, folder)


def _manifest(
    decided: Plan,
    split: Split,
    emitter: Emitter,
    programs: list[tuple[ProgramEntry, Program]],
    texts: tuple[JsonObject, ...],
    golden: tuple[Golden, ...],
) -> Manifest:
    report = split.denoiser.report
    config = decided.options.to_config() | {"precision": decided.precision, "steps": list(decided.steps), "guidance": decided.guidance}
    return Manifest(
        dexport=metadata.version("dexport"),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        model=Model(class_name=decided.pipeline.class_name, name=decided.options.model, sha256=source_hash(decided.directory)),
        family=decided.pipeline.family,
        target=decided.target.id,
        backend=emitter.backend,
        precision=decided.precision,
        config=json.loads(json.dumps(config)),
        components=emitter.components,
        plugins=emitter.plugins,
        text=texts,
        requests=request_entries(decided),
        batch=decided.options.batch,
        guidance=Guidance(kind=decided.pipeline.guidance.kind, default=decided.guidance),
        frames_per_second=decided.pipeline.frames_per_second,
        sizes=decided.sizes,
        frames=decided.pipeline.frames,
        programs=tuple(entry for entry, _ in programs),
        hoisting={
            "parameters": report.parameters,
            "loop_parameters": report.loop_parameters,
            "moved": [{"value": m.node, "depends_on": sorted(k.value for k in m.kinds), "shape": list(m.shape)} for m in report.moved],
            "kept": [{"value": k.node, "reason": k.reason} for k in report.kept],
        },
        golden=golden,
    )


def default_output(options: BuildOptions) -> Path:
    """MODEL-TARGET.dxb in the current folder.

    Raises:
        UserError: the model's name is empty.
    """
    stem = Path(options.model.rstrip("/")).name
    if not stem:
        raise UserError("model", expected="a directory or a hub id", got=repr(options.model), fix="name it")
    return Path(f"{stem}-{options.target.replace('@', '-').replace(':', '-')}.dxb")
