"""How fast is a W8A8 denoising loop on the CPU, beside our fp32 and what a user has today? And how much memory does it take?

The denoiser of `cpu_loop.py` (PixArt, 12 layers, hidden 384, 256 tokens, random weights), 20 steps with guidance, batch 1; the loop
alone is timed. Two commands, because a machine with VNNI or AMX need not have what it takes to build:

    python benchmarks/quantized_loop.py prepare DIR     needs dexport[export,openvino,onnxruntime] and nncf
    python benchmarks/quantized_loop.py measure DIR     needs numpy, openvino, onnxruntime and what dexport's runtime needs

What `measure` reads (all but model/ and plain.onnx) packs to a few MB with xz and a dictionary of 512 MiB. DEXPORT_THREADS holds for all.

Contenders, in turn in one process for time, each in a process of its own for memory:

    ours fp32, int8 (constant scales), int8-token (vidit-q-w8a8: scales per token), for OpenVINO, and int8 for ONNX Runtime
    nncf         the plain export in OpenVINO, quantized by NNCF with its transformer preset on 20 calls of a denoising loop
    ort dynamic  the plain export, quantized by onnxruntime.quantization.quantize_dynamic; "exact" with session.x64quantprecision, as ours:
                 without VNNI its products saturate in 16 bits otherwise

Measured on 8 cores of a Xeon with AMX (results/quantized_loop_amx.json): int8 takes 0.40 of our fp32's time, 0.92 of NNCF's and 0.51 of
ONNX Runtime's; our own bundle for ONNX Runtime takes 0.73 of its quantize_dynamic's. On two cores with AVX2 only
(results/quantized_loop.json), where OpenVINO's int8 saturates and our runtime avoids it: 1.17 of our fp32's time, 0.90 of NNCF's, and 1.82
of ONNX Runtime's, or 1.61 where that is exact too. Memory is the peak of a process that runs a loop once, nothing compiled before; text
encoder and decoder are left out of ours as of the peers': with AMX int8 takes 0.72 of our fp32's, 0.91 of NNCF's and 1.36 of ONNX
Runtime's, and our bundle for ONNX Runtime 0.83 of that.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

STEPS, SEED, GUIDANCE, PROMPT, TOKENS = 20, 0, 4.5, "a red circle", 120
OURS = {
    "ours fp32": ("cpu", None),
    "ours int8": ("cpu", "int8"),
    "ours int8-token": ("cpu", "vidit-q-w8a8"),
    "ours int8, ONNX Runtime": ("onnxruntime-cpu", "int8"),
}
PEERS = ("openvino fp32", "openvino + nncf int8", "onnxruntime dynamic int8", "onnxruntime dynamic int8, exact")
BASE = "ours int8"
OUTSIDE = ("text_encoder", "vae_decoder")
_FAST = {"calibration_size": 2, "quality_prompts": 0}  # pictures of random weights say nothing about quality


def main() -> None:
    """Prepares or measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("prepare", "measure", "memory"), help="memory: of one contender, used by measure")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", help="contender")
    arguments = parser.parse_args()
    match arguments.command:
        case "prepare":
            prepare(arguments.directory)
        case "measure":
            measure(arguments.directory, arguments.runs)
        case _:
            run = contender(arguments.directory, arguments.only, keep=False)
            run()
            print(json.dumps({"peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def prepare(folder: Path) -> None:
    """Builds the bundles and the peers' models into `folder`."""
    import openvino
    import torch
    from cpu_loop import denoise, plain_export
    from diffusers import DiffusionPipeline
    from provenance import provenance
    from random_pixart import random_pixart

    from dexport.exporter.build import build
    from dexport.exporter.options import BuildOptions

    folder.mkdir(parents=True, exist_ok=True)
    directory = random_pixart(folder / "model", layers=12, heads=6, head_dim=64, caption=512, sample_size=32, seed=SEED)
    pipeline = DiffusionPipeline.from_pretrained(directory)
    embeds, mask, negative, negative_mask = pipeline.encode_prompt(PROMPT, clean_caption=False, max_sequence_length=TOKENS)
    prompt, masks = torch.cat([negative, embeds]), torch.cat([negative_mask, mask]).float()
    plain_export(pipeline, folder / "plain.onnx", (torch.randn(2, 4, 32, 32), prompt, masks, torch.full((2,), 500)))
    names = [i.get_any_name() for i in openvino.Core().read_model(folder / "plain.onnx").inputs]
    compiled = openvino.Core().compile_model(folder / "plain.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    seen: list[dict[str, np.ndarray]] = []

    def call(latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen.append(dict(zip(names, (t.numpy().copy() for t in (latent, prompt, masks, timestep)))))
        return torch.from_numpy(compiled(seen[-1])[0])

    denoise(pipeline, call)
    _write_peers(folder, seen)
    np.savez(folder / "inputs.npz", **{f"{i}.{name}": array for i, feed in enumerate(seen) for name, array in feed.items()})
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join([PROMPT, "a blue square", "two green stars", "a cat", "", "night"]) + "\n")
    for name, (target, recipe) in OURS.items():
        given: dict[str, Any] = {} if recipe is None else {"recipe": recipe, "calibration": str(prompts), **_FAST}
        build(BuildOptions(model=str(directory), target=target, steps=(STEPS,), golden="none", **given), _bundle(folder, name))
    (folder / "prepared.json").write_text(json.dumps(provenance(SEED)))


def _write_peers(folder: Path, seen: list[dict[str, np.ndarray]]) -> None:
    """The plain export as each peer quantizes it, as documented."""
    import nncf
    import openvino
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = openvino.Core().read_model(folder / "plain.onnx")
    model.reshape({name: list(array.shape) for name, array in seen[0].items()})
    openvino.save_model(model, folder / "plain.xml", compress_to_fp16=False)
    low = nncf.quantize(model, nncf.Dataset(seen), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(seen))
    openvino.save_model(low, folder / "nncf.xml", compress_to_fp16=False)
    quantize_dynamic(folder / "plain.onnx", folder / "dynamic.onnx", weight_type=QuantType.QInt8)


def _bundle(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-').replace(',', '')}.dxb"


def contender(folder: Path, name: str, keep: bool = True) -> Callable[[], float]:
    """A function that runs the loop once and returns its seconds; `keep` engines after their last use, for the next run."""
    return _ours(_bundle(folder, name), keep) if name in OURS else _peer(folder, name)


def _ours(path: Path, keep: bool) -> Callable[[], float]:
    """The program from embeddings to the last latent: peers have neither tokenizer nor text encoder nor decoder."""
    from dexport.runtime.bundle import open_bundle
    from dexport.runtime.engines import Engine, open_engine
    from dexport.runtime.interpreter import run_program
    from dexport.runtime.noise import TorchNoise
    from dexport.runtime.program import program_from_json

    bundle = open_bundle(path)
    entry = next(entry for entry in bundle.manifest.programs if entry.guided)
    program = program_from_json(bundle.read_bytes(entry.file), entry.file)
    request = {name: np.ones(program.buffers[name].shape(1), program.buffers[name].dtype) for name in program.request}
    engines: dict[str, Engine] = {}

    def engine(name: str, inputs: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if name not in engines:
            engines[name] = open_engine(bundle, name, entry.size)
        return engines[name](inputs)

    def release(name: str) -> None:
        if not keep and name in engines:
            engines.pop(name).close()

    def run() -> float:
        marks: list[float] = []
        run_program(
            program,
            {n: _stand_in(c) if n in OUTSIDE else partial(engine, n) for n, c in bundle.manifest.components.items()},
            request,
            parameters={"guidance_scale": GUIDANCE},
            noise=TorchNoise(SEED),
            tables=bundle.tensors(entry.tables) if entry.tables else {},
            on_step=lambda step, timestep, buffers: marks.append(time.perf_counter()),
            release=release,
        )
        return (marks[-1] - marks[0]) * STEPS / (STEPS - 1)  # the first step's begin is not seen: add one mean step

    return run


def _stand_in(component: Any) -> Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]:
    """Numbers in the place of a component that is not compared: neither time nor memory of the others depends on them."""

    def call(inputs: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        rows, random = len(next(iter(inputs.values()))), np.random.default_rng(SEED)
        shapes = {name: [rows if d == "batch" else d for d in port.shape] for name, port in component.outputs.items()}
        return {name: random.standard_normal(shape).astype(component.outputs[name].dtype) for name, shape in shapes.items()}

    return call


def _peer(folder: Path, name: str) -> Callable[[], float]:
    """The model once per step on the recorded inputs; combining the halves and the scheduler's sums are left out, in the peer's favour."""
    stored = np.load(folder / "inputs.npz")
    feeds: list[dict[str, np.ndarray]] = [{} for _ in range(STEPS)]
    for key in stored.files:
        step, _, port = key.partition(".")
        feeds[int(step)][port] = stored[key]
    call = _onnxruntime(folder / "dynamic.onnx", "exact" in name) if name.startswith("onnxruntime") else _openvino(folder, name)

    def run() -> float:
        started = time.perf_counter()
        for feed in feeds:
            call(feed)
        return time.perf_counter() - started

    return run


def _openvino(folder: Path, name: str) -> Callable[[dict[str, np.ndarray]], Any]:
    import openvino

    from dexport.runtime.engines import compile_cache

    model = folder / ("nncf.xml" if "nncf" in name else "plain.xml")
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "CACHE_DIR": str(compile_cache())}  # as ours has
    if threads := os.environ.get("DEXPORT_THREADS"):
        hints["INFERENCE_NUM_THREADS"] = threads
    return openvino.Core().compile_model(model, "CPU", hints)  # type: ignore[no-any-return]


def _onnxruntime(path: Path, exact: bool) -> Callable[[dict[str, np.ndarray]], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", str(int(exact)))
    options.intra_op_num_threads = int(os.environ.get("DEXPORT_THREADS", 0))  # 0: its own choice
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)


def measure(folder: Path, runs: int) -> None:
    """Prints milliseconds per step, peak memory and ratios; writes them into `folder`."""
    memory = {name: peak for name in (*OURS, *PEERS) if (peak := _memory(folder, name)) is not None}
    if BASE not in memory:
        raise SystemExit(f"{BASE} does not run: nothing to compare")
    loops = {name: contender(folder, name) for name in memory}
    seconds: dict[str, list[float]] = {name: [] for name in memory}
    for _ in range(runs + 1):  # in turn, so that a change of the machine's speed hits all alike; the first round warms up
        for name, loop in loops.items():
            seconds[name].append(loop())
        print("seconds:", {name: round(taken[-1], 3) for name, taken in seconds.items()}, flush=True)
    rows = [
        {
            "loop": name,
            "ms per step": 1000 * statistics.median(seconds[name][1:]) / STEPS,
            f"{BASE} / this": statistics.median(a / b for a, b in zip(seconds[BASE][1:], seconds[name][1:])),
            "peak MB": memory[name] / 1e6,
            f"memory of {BASE} / this": memory[BASE] / memory[name],
        }
        for name in memory
    ]
    from provenance import _processor

    found = {"processor": _processor(), "prepared": json.loads((folder / "prepared.json").read_text()), "rows": rows}
    (folder / "quantized_loop.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["processor"]))
    for row in rows:
        print("  ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{value:28}" for key, value in row.items()))


def _memory(folder: Path, name: str) -> float | None:
    """Peak resident bytes of a process that runs one contender once; None, and why, of one that does not run here."""
    command = [sys.executable, __file__, "memory", str(folder), "--only", name]
    with tempfile.TemporaryDirectory() as cache:  # a first start: nothing compiled before
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"DEXPORT_CACHE_DIR": cache})
    if done.returncode:
        print(f"{name} is left out, it fails with {done.returncode}:", *done.stderr.strip().splitlines()[-3:], sep="\n    ")
        return None
    return float(json.loads(done.stdout.splitlines()[-1])["peak_rss"])


if __name__ == "__main__":
    main()
