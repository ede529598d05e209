"""What do calibration and quantization cost at full size? PixArt-XL/2, 610 M parameters in fp32, W8A8 SmoothQuant, beside ModelOpt's.

Both start from the same pipeline directory (random weights, 256 tokens, a small text encoder and VAE so that the denoiser is what is
measured), make the same pictures (2 prompts in one batch, 4 steps with guidance: 4 calls of 4 rows) and end with int8 weights on the disk:

    open         dexport captures graphs; ModelOpt's user loads the pipeline
    calibrate    dexport.exporter.calibration.calibrate; mtq.quantize with INT8_SMOOTHQUANT_CFG around the diffusers pipeline
    quantize     the recipe applied and every weight written; export_hf_checkpoint of the denoiser

What dexport opens is ready to be written as ONNX; with ModelOpt, torch.onnx.export captures the model later (kit_build.py measures that).
So opening is shown, and counts in "all", but what has to be below 1 is calibration and quantization, and memory over all.

A process for each, one thread, in turn, several times; medians. Wall time depends on what else the machine does, processor time less. The
peak of resident memory is the kernel's; "private" is the part of it that no file backs, sampled. That both saw the same is checked: the
largest magnitude of every input channel of layers at both ends. Exits with 1 if a ratio is not below 1, or these differ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from provenance import write_result

SEED = 0
PROMPTS = ("a red square above a blue circle", "a small green triangle")
STEPS, GUIDANCE, PIXELS = 4, 4.5, 64  # the VAE halves the size: 32x32 latents
TOLERANCE = 1e-3  # of the largest magnitude of a layer: float32 sums in another order
LAYERS = tuple(f"transformer_blocks.{block}.{layer}" for block in (0, 27) for layer in ("attn1.to_q", "attn2.to_out.0", "ff.net.2"))
SUMS = {"calibrate + quantize": ("calibrate", "quantize"), "all": ("open", "calibrate", "quantize")}
MEMORY = ("peak GiB", "private GiB")
_POLL_S = 0.02


def main() -> int:
    """1 if a ratio is not below 1, or the two did not see the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", choices=tuple(_CHILDREN), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_CHILDREN[arguments.child](arguments.folder)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        in_child("pipeline", folder)
        rounds = [(in_child("dexport", folder), in_child("modelopt", folder)) for _ in range(arguments.repeats)]
        difference = in_child("compare", folder)["difference"]
    rows = [row(what, *(statistics.median(side[what] for side in sides) for sides in zip(*rounds))) for what in rounds[0][0]]
    print(f"largest difference of what both saw: {difference:.1e} of the largest magnitude of a layer")
    write_result("calibration_cost", SEED, rows, "calibration and quantization, PixArt-XL/2, W8A8 SmoothQuant")
    marked = [found["ratio"] for found in rows if found["what"].startswith("calibrate + quantize") or found["what"] in MEMORY]
    return 0 if max(marked) < 1 and difference < TOLERANCE else 1


def row(what: str, ours: float, theirs: float) -> dict[str, Any]:
    """A line of the table."""
    return {"what": what, "dexport": ours, "modelopt": theirs, "ratio": ours / theirs}


def in_child(what: str, folder: Path) -> dict[str, float]:
    """Does one thing in a process of its own: seconds of its stages, and peak resident and private memory.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, __file__, "--child", what, "--folder", str(folder)]
    private = 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=output)
        status = Path(f"/proc/{process.pid}/status")
        while True:
            private = max(private, *(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("RssAnon")), 0)
            ended, code, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            time.sleep(_POLL_S)
        if code:
            raise RuntimeError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(code)}")
        output.seek(0)
        found: dict[str, float] = json.loads(output.read().splitlines()[-1])
    return found | dict(zip(MEMORY, (usage.ru_maxrss / 2**20, private / 2**20)))


def timed(*stages: tuple[str, Callable[[], None]]) -> dict[str, float]:
    """Wall and processor seconds of stages that run one after the other, and of the sums that are compared."""
    clocks = {"s": time.perf_counter, "cpu s": time.process_time}
    found: dict[tuple[str, str], float] = {}
    for name, stage in stages:
        before = {unit: clock() for unit, clock in clocks.items()}
        stage()
        found |= {(name, unit): clock() - before[unit] for unit, clock in clocks.items()}
    found |= {(name, unit): sum(found[part, unit] for part in parts) for name, parts in SUMS.items() for unit in clocks}
    return {f"{name}, {unit}": seconds for (name, unit), seconds in found.items()}


def write_pipeline(folder: Path) -> dict[str, float]:
    """PixArt-XL/2 with random weights."""
    from random_pixart import random_pixart

    random_pixart(folder / "model", layers=28, heads=16, head_dim=72, caption=4096, sample_size=32, seed=SEED)
    return {}


def dexport(folder: Path) -> dict[str, float]:
    """What `dexport build --recipe smoothquant` does, as far as the quantized weights."""
    state: dict[str, Any] = {}

    def opened() -> None:
        import dexport.exporter.calibration
        import dexport.exporter.quantizer  # noqa: F401
        from dexport.exporter.options import BuildOptions
        from dexport.exporter.torch_pipeline import open_torch_pipeline

        size = (PIXELS, PIXELS)
        options = BuildOptions(
            model=str(folder / "model"), target="cpu", precision="fp32", sizes=(size,), steps=(STEPS,), guidance=GUIDANCE
        )
        state["pipeline"] = open_torch_pipeline(options)

    def calibrated() -> None:
        from dexport.exporter.calibration import calibrate
        from dexport.exporter.calibration_request import CalibrationRequest

        request = CalibrationRequest(conditions=PROMPTS, seed=SEED)
        state["statistics"] = calibrate(state["pipeline"], request, folder / "seen.statistics")

    def quantized() -> None:
        from dexport.exporter.external_data import WeightFile
        from dexport.exporter.quantizer import find_quantizer
        from dexport.passes.quantization.recipe_file import find_recipe
        from dexport.passes.quantization.scratch import Scratch

        pipeline = state["pipeline"]
        quantizer = find_quantizer(pipeline, find_recipe("smoothquant"), state["statistics"], Scratch(folder))
        with WeightFile(folder / "dexport.weights") as file:
            for graph in quantizer.split(pipeline.split).split.graphs():
                for weight in graph.used_weights().values():
                    file.put(weight)

    return timed(("open", opened), ("calibrate", calibrated), ("quantize", quantized))


def modelopt(folder: Path) -> dict[str, float]:
    """What a user of ModelOpt runs; what its observers saw of some layers is kept."""
    state: dict[str, Any] = {}

    def opened() -> None:
        import modelopt.torch.export
        import modelopt.torch.quantization  # noqa: F401
        from diffusers import PixArtAlphaPipeline

        state["pipeline"] = PixArtAlphaPipeline.from_pretrained(folder / "model")

    def calibrated() -> None:
        import modelopt.torch.quantization as mtq
        import torch

        pipeline = state["pipeline"]

        def forward_loop(_: torch.nn.Module) -> None:
            noise = [torch.Generator("cpu").manual_seed(SEED + i) for i in range(len(PROMPTS))]
            size = {"height": PIXELS, "width": PIXELS, "use_resolution_binning": False}
            pipeline(list(PROMPTS), num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=noise, output_type="latent", **size)

        with torch.no_grad():
            mtq.quantize(pipeline.transformer, mtq.INT8_SMOOTHQUANT_CFG, forward_loop)

    def exported() -> None:
        import torch
        from modelopt.torch.export import export_hf_checkpoint

        with torch.no_grad():
            export_hf_checkpoint(state["pipeline"].transformer, export_dir=folder / "exported")

    found = timed(("open", opened), ("calibrate", calibrated), ("quantize", exported))
    _keep_seen(state["pipeline"].transformer, folder)
    return found


def _keep_seen(denoiser: Any, folder: Path) -> None:
    import safetensors.torch

    modules = dict(denoiser.named_modules())
    seen = {name: modules[name].input_quantizer._amax_for_smoothing.reshape(-1).contiguous() for name in LAYERS}
    safetensors.torch.save_file(seen, folder / "modelopt.safetensors")


def compare(folder: Path) -> dict[str, float]:
    """The largest difference of the largest magnitudes that both saw, relative to the largest of a layer."""
    import safetensors.torch

    from dexport.passes.quantization.statistics import load_statistics

    ours = load_statistics(folder / "seen.statistics")
    theirs = safetensors.torch.load_file(folder / "modelopt.safetensors")
    differences = []
    for name in LAYERS:
        seen = ours.of("denoiser", name)
        assert seen is not None
        differences.append(float((seen.absmax.amax(0) - theirs[name]).abs().max() / theirs[name].max()))
    return {"difference": max(differences)}


_CHILDREN: dict[str, Callable[[Path], dict[str, float]]] = {
    "pipeline": write_pipeline,
    "dexport": dexport,
    "modelopt": modelopt,
    "compare": compare,
}

if __name__ == "__main__":
    sys.exit(main())
