"""What do other quantizers make of the same weights? Pictures of the reference pipeline at the same seeds, 20 steps, guidance 4.0.

All peers quantize the linears of the denoiser's blocks that run in the loop, calibrated on the same 32 prompts over all steps:

    torch   naive per-tensor min-max W8A8 and W4A8; ModelOpt's INT8, INT8 SmoothQuant, FP8, INT4 AWQ and W4A8 (on any device)
    onnx    ONNX Runtime's quantizers and NNCF with OpenVINO, on the processor, from a plain ONNX export

    python benchmarks/peers.py --prompts 512                                               # everything here
    python benchmarks/peers.py --group torch --device cuda --prompts 512 --rows rows.json  # on a machine with a GPU, then here:
    python benchmarks/peers.py --group onnx --prompts 64 --merge rows.json

Needs nvidia-modelopt, nncf and scikit-image.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import peers_modelopt
import peers_naive
import torch
from quality_data import Example, Quantized, embedded, open_example, prompts_of, sample, torch_denoiser
from quality_metrics import measured, scores

Maker = partial[Quantized]


def torch_peers(example: Example, batch: int) -> Iterator[Maker]:
    """Peers that are PyTorch modules."""
    for bits in (8, 4):
        yield partial(peers_naive.naive, example, batch, bits)
    for configuration in peers_modelopt.CONFIGURATIONS:
        yield partial(peers_modelopt.modelopt, example, batch, configuration)


def onnx_peers(example: Example, folder: Path) -> Iterator[Maker]:
    """Peers that start from an ONNX file."""
    import peers_nncf
    import peers_onnx

    file = folder / "plain.onnx"
    nodes = peers_onnx.export(example, file)
    recorded = peers_onnx.feeds(example, peers_onnx.input_names(file))
    yield partial(peers_onnx.dynamic, example, folder, nodes)
    for alone in (False, True):
        yield partial(peers_onnx.static, example, folder, nodes, recorded, alone)
    for only_loop in (True, False):
        yield partial(peers_nncf.nncf_int8, example, folder, nodes, recorded, only_loop)


def called(make: Maker) -> str:
    """What a peer is called before it is made: its function and its last argument."""
    last = make.args[-1]
    return f"{make.func.__name__} {last}" if isinstance(last, str | int) else make.func.__name__


def rows_of(example: Example, makers: Iterator[Maker], prompts: list[str], batch: int, mapper: Any, only: str) -> Iterator[dict[str, Any]]:
    """A row for the unquantized model, then one per peer; a peer that fails is reported on stderr and has a row that says so."""
    text = embedded(example, prompts)
    reference = sample(example, torch_denoiser(example.transformer), text, batch)
    score = scores(prompts, reference.pictures, mapper)
    where = torch.cuda.get_device_name() if example.device.type == "cuda" else f"{platform.machine()} processor"
    facts = {"pictures": len(prompts), "on": f"{where}, torch {torch.__version__}"}
    exact = (reference.pictures, reference.latents.numpy())
    yield {
        "peer": "fp32",
        "weights": "fp32",
        "activations": "fp32",
        "bits": 32.0,
        **measured(exact, exact, (score, score)),
        **facts,
    }
    for make in (make for make in makers if re.search(only, called(make))):
        began = time.perf_counter()
        try:
            with torch.no_grad():
                peer = make()
            ready = time.perf_counter()
            samples = sample(example, peer.denoiser, text, peer.batch or batch)
        except Exception as error:
            traceback.print_exc()
            yield {"peer": called(make), "failed": f"{type(error).__name__}: {error}".splitlines()[0]}
            continue
        print(
            f"{peer.name}: quantized in {ready - began:.0f} s, sampled in {time.perf_counter() - ready:.0f} s", file=sys.stderr, flush=True
        )
        marks = scores(prompts, samples.pictures, mapper)
        columns = measured(exact, (samples.pictures, samples.latents.numpy()), (score, marks))
        yield {"peer": peer.name, "weights": peer.weights, "activations": peer.activations, "bits": peer.bits, **columns, **facts}


def keep(rows: list[dict[str, Any]], path: Path | None, new: Iterator[dict[str, Any]]) -> None:
    """Appends rows, and writes all of them after each, so that a run that is cut short has what it measured."""
    for row in new:
        rows.append(row)
        if path:
            path.write_text(json.dumps(rows, indent=1) + "\n")
            print(json.dumps(row), flush=True)


def main() -> int:
    """1 if a peer failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=("torch", "onnx", "all", "none"), default="all")
    parser.add_argument("--device", default="cpu", help="of the torch group")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--batch", type=int, help="pictures at a time in the torch group")
    parser.add_argument("--only", default="", help="a regular expression that is found in what a peer is called here, such as 'naive|FP8'")
    parser.add_argument("--rows", type=Path, help="write the rows here instead of results/peers.json")
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="rows written before by --rows, put first")
    arguments = parser.parse_args()
    prompts = prompts_of("heldout-one", arguments.prompts)
    rows = [row for path in arguments.merge for row in json.loads(path.read_text())]
    with ProcessPoolExecutor(os.cpu_count()) as pool, tempfile.TemporaryDirectory() as folder:
        mapper = partial(pool.map, chunksize=8)
        list(mapper(abs, range(os.cpu_count() or 1)))  # the workers start before anything has threads
        if arguments.group in ("torch", "all"):
            example = open_example(arguments.device)
            batch = arguments.batch or (512 if arguments.device.startswith("cuda") else 16)
            keep(rows, arguments.rows, rows_of(example, torch_peers(example, batch), prompts, batch, mapper, arguments.only))
        if arguments.group in ("onnx", "all"):
            example = open_example("cpu")
            keep(rows, arguments.rows, rows_of(example, onnx_peers(example, Path(folder)), prompts, 8, mapper, arguments.only))
    if not arguments.rows:
        from provenance import write_result

        write_result("peers", 0, rows, "shapes-t2i, held-out prompts, 20 steps, guidance 4.0; PSNR and SSIM on the first 64 against fp32")
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
