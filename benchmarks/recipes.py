"""What do dexport's recipes make of the pictures? The reference pipeline at the same seeds as benchmarks/peers.py, 20 steps, guidance 4.0.

One row per recipe, and variants that answer single questions: a table of scales against one static scale at the same bits (per method), the
low-rank branch against the same without, mixed against uniform precision, text encoder and VAE quantized as devices with little memory get
them. Everything runs in PyTorch with the meaning of the quantized operations, so it can run on a GPU.

    python benchmarks/recipes.py                                                  # all, here
    python benchmarks/recipes.py --device cuda --only 'svdquant' --rows rows.json  # some, on a machine with a GPU
    python benchmarks/recipes.py --capture graphs.pt                               # graphs for such a machine, if its PyTorch is too old
    python benchmarks/recipes.py --merge rows.json --only nothing                  # the table of rows that exist
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captured import load_split, save_split
from quality_data import CALIBRATION_PROMPTS, EXAMPLE, GUIDANCE, STEPS, prompts_of
from quality_metrics import measured, scores
from torch._dispatch.python import enable_python_dispatcher

from dexport.exporter.calibration import calibrate
from dexport.exporter.calibration_request import CalibrationRequest
from dexport.exporter.options import BuildOptions
from dexport.exporter.plan import plan
from dexport.exporter.quantizer import find_quantizer
from dexport.exporter.solver import probe
from dexport.exporter.torch_pipeline import TorchPipeline, open_torch_pipeline, torch_pipeline
from dexport.passes.quantization.recipe import Recipe, Section, Treatment, WeightSpec
from dexport.passes.quantization.recipe_file import find_recipe, recipe_names
from dexport.passes.quantization.samplers import Sampler
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.statistics import Statistics, load_statistics

Change = Callable[[Treatment], Treatment]


def changed(name: str, change: Change, called: str) -> Recipe:
    """A recipe whose treatments of the denoiser are changed."""
    recipe = find_recipe(name)
    section = recipe.sections["denoiser"]

    def every(treatment: Treatment | None) -> Treatment | None:
        return None if treatment is None else change(treatment)

    layers = {key: every(treatment) for key, treatment in section.layers.items()}
    denoiser = replace(section, default=every(section.default), layers=layers)
    return replace(recipe, name=called, sections={**recipe.sections, "denoiser": denoiser})


def with_mode(mode: str, centred: bool) -> Change:
    """The same with another kind of activation scale."""
    return lambda t: t if t.activations is None else replace(t, activations=replace(t.activations, mode=mode, centred=centred))


def variants() -> Iterator[Recipe]:
    """Recipes that differ from a published one in one thing."""
    for name in ("int8", "smoothquant", "fp8"):
        yield changed(name, with_mode("static", False), f"{name}, static")
        yield changed(name, with_mode("table", False), f"{name}, table")
        yield changed(name, with_mode("static", True), f"{name}, static centred")
        yield changed(name, with_mode("table", True), f"{name}, table centred")
    for name in ("tfmq-w4a8", "q-diffusion-w4a8", "eda-dm-w4a8"):
        yield changed(name, with_mode("static", False), f"{name}, static")
        yield changed(name, with_mode("table", False), f"{name}, table")
    for name in ("svdquant-w4a4", "svdquant-w4a8", "svdquant-nvfp4"):
        yield changed(name, lambda t: replace(t, low_rank=None), f"{name}, no branch")
    yield from mixed_and_uniform()
    for label, spec in (
        ("int4 block-128", WeightSpec(format="int4", granularity="block-128", range="mse")),
        ("int8", WeightSpec(format="int8")),
    ):
        encoder = Section(default=Treatment(weights=spec))
        yield Recipe(name=f"text encoder {label}", summary="", sections={"text_encoder": encoder})
    vae = Section(default=Treatment(weights=WeightSpec(format="int8")))
    yield Recipe(name="vae int8 weights", summary="", sections={"vae": vae})


def mixed_and_uniform() -> Iterator[Recipe]:
    """Pairs of the same bytes: one block size for all layers, and the allocator's choice."""
    mixed = find_recipe("vidit-q-mp")
    section = mixed.sections["denoiser"]
    assert section.mixed_precision is not None and section.default is not None
    for block, bits in ((24, 4 + 16 / 24), (16, 5.0)):
        weights = WeightSpec(format="int4", granularity=f"block-{block}", range="mse")
        uniform = replace(section, default=replace(section.default, weights=weights), mixed_precision=None)
        yield replace(mixed, name=f"vidit-q-mp, uniform blocks of {block}", sections={"denoiser": uniform})
        budget = replace(section, mixed_precision=replace(section.mixed_precision, average_bits=bits))
        yield replace(mixed, name=f"vidit-q-mp, mixed, {bits:.2f} bits", sections={"denoiser": budget})


def wanted_recipes(only: str) -> list[Recipe]:
    """The recipes whose names hold the regular expression `only`; a name once."""
    found = {recipe.name: recipe for recipe in (*map(find_recipe, recipe_names()), *variants())}
    return [recipe for name, recipe in found.items() if re.search(only, name)]


def opened(captured: Path | None = None) -> TorchPipeline:
    """The reference pipeline; `captured` holds its graphs where this PyTorch cannot capture them."""
    options = BuildOptions(model=str(EXAMPLE / "pipeline"), target="cpu", precision="fp32", steps=(STEPS,), guidance=GUIDANCE)
    if captured is None:
        return open_torch_pipeline(options)
    decided = plan(options)
    solver = probe(decided.scheduler, decided.schedule(decided.sizes[0], STEPS))
    return torch_pipeline(decided, load_split(captured), solver)


def statistics_with(pipeline: TorchPipeline, sampler: str, folder: Path) -> Statistics:
    """A calibration on the prompts that the peers calibrate with; kept in a folder."""
    path = folder / f"{sampler}.statistics"
    if path.exists():
        return load_statistics(path)
    conditions = tuple(prompts_of("calibration", CALIBRATION_PROMPTS))
    return calibrate(pipeline, CalibrationRequest(conditions=conditions, sampler=Sampler(sampler)), path)


def rows_of(
    pipeline: TorchPipeline, recipes: list[Recipe], prompts: list[str], device: str, batch: int, mapper: Any, folder: Path
) -> Iterator[dict[str, Any]]:
    """A row per recipe; one that fails is reported on stderr and has a row that says so."""
    seeds = list(range(len(prompts)))
    reference = pipeline.materialised(device).run(prompts, seeds, batch=batch)
    score = scores(prompts, reference.pictures, mapper)
    print(f"fp32: score {score.mean():.4f}", file=sys.stderr, flush=True)
    for recipe in recipes:
        began = time.perf_counter()
        try:
            statistics = statistics_with(pipeline, recipe.sampler, folder) if recipe.calibrated else None
            with tempfile.TemporaryDirectory() as scratch:
                found = find_quantizer(pipeline, recipe, statistics, Scratch(Path(scratch)), device=device)
                with enable_python_dispatcher():  # older PyTorch needs it for operations on values with symbolic sizes
                    changed_pipeline, layers = found.pipeline(pipeline)
                loaded = changed_pipeline.materialised(device)
                ready = time.perf_counter()
                run = loaded.run(prompts, seeds, batch=batch)
        except Exception as error:
            traceback.print_exc()
            yield {"recipe": recipe.name, "failed": f"{type(error).__name__}: {error}".splitlines()[0]}
            continue
        marks = scores(prompts, run.pictures, mapper)
        columns = measured((reference.pictures, reference.latents), (run.pictures, run.latents), (score, marks))
        print(f"{recipe.name}: {ready - began:.0f} s, {columns['psnr']:.1f} dB", file=sys.stderr, flush=True)
        part = next(iter(recipe.sections))
        component = {"denoiser": "denoiser", "text_encoder": "text_encoder", "vae": "vae_decoder"}[part]
        facts = {"bits": layers.treated_bits(component), "bytes": layers.weight_bytes(component), "seconds": round(ready - began)}
        where = torch.cuda.get_device_name() if device.startswith("cuda") else "processor"
        yield {"recipe": recipe.name, **facts, **columns, "pictures": len(prompts), "on": f"{where}, torch {torch.__version__}"}


def main() -> int:
    """1 if a recipe failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a regular expression that is found in a recipe's name")
    parser.add_argument("--part", metavar="I/N", help="every Nth of them, from the Ith")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32, help="pictures at a time")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that look at pictures")
    parser.add_argument("--statistics", type=Path, help="a folder to keep calibrations in, which others may share")
    parser.add_argument("--captured", type=Path, help="a file of --capture, for a PyTorch that cannot capture")
    parser.add_argument("--capture", type=Path, help="write the captured pipeline here, and stop")
    parser.add_argument("--rows", type=Path, help="write the rows here instead of results/recipes.json")
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="rows written before by --rows, put first")
    arguments = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if arguments.capture:
        save_split(opened().split, arguments.capture)
        return 0
    recipes = wanted_recipes(arguments.only)
    if arguments.part:
        first, every = map(int, arguments.part.split("/"))
        recipes = recipes[first::every]
    prompts = prompts_of("heldout-one", arguments.prompts)
    rows = [row for path in arguments.merge for row in json.loads(path.read_text())]
    with ProcessPoolExecutor(arguments.workers) as pool, tempfile.TemporaryDirectory() as own:
        mapper = partial(pool.map, chunksize=8)
        list(mapper(abs, range(arguments.workers)))  # the workers start before anything has threads
        folder = arguments.statistics or Path(own)
        if recipes:
            pipeline = opened(arguments.captured)
            for row in rows_of(pipeline, recipes, prompts, arguments.device, arguments.batch, mapper, folder):
                rows.append(row)
                if arguments.rows:  # what is measured stays, whatever becomes of the rest
                    arguments.rows.write_text(json.dumps(rows, indent=1) + "\n")
    if not arguments.rows:
        from provenance import write_result

        write_result("recipes", 0, rows, "shapes-t2i, held-out prompts, 20 steps, guidance 4.0; PSNR and SSIM on the first 64 against fp32")
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    sys.exit(main())
