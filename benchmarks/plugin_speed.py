"""How fast are the kernels of the plugins on the GPU of this machine, beside what a user would call instead?

    python benchmarks/plugin_speed.py LIBRARIES        as `dexport plugins build --sm 90 -o LIBRARIES` writes them

Needs PyTorch with CUDA. Inputs are random and new ones are drawn for each size; a time is the median of batches of calls between two
events of CUDA. A result that is not finite, or not near PyTorch's where both compute the same, ends it with an error.

block_sparse_attention: as many blocks of keys are listed for each block of 128 queries as the density says, at random. "Efficiency" is
density x time of dense attention / time of the sparse one: 1 if time shrinks as the work does. It is given against FlashAttention-2
(mma.sync, as our kernel) and against cuDNN's, the fastest dense attention that PyTorch has there.

lowrank_linear: against cuBLAS in bf16, and against the same kernels without the branch, which PyTorch then computes and adds.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from provenance import write_result
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention

from dexport.plugins.block_sparse_attention.launcher import request as attention_request
from dexport.plugins.lowrank_linear.launcher import request as linear_request

SEED, HEADS, QUERY_BLOCK = 0, 8, 128
TOKENS = (4096, 16384, 65536)
DENSITIES = (1.0, 0.5, 0.25, 0.1)
RANK = 32
SHAPES = (
    ("DiT-XL/2 projection", 4096, 1152, 1152),
    ("DiT-XL/2 feed-forward in", 4096, 1152, 4608),
    ("DiT-XL/2 feed-forward out", 4096, 4608, 1152),
    ("FLUX projection", 4608, 3072, 3072),
    ("FLUX feed-forward in", 4608, 3072, 12288),
    ("FLUX feed-forward out", 4608, 12288, 3072),
)
FORMS = (("W4A4, groups of 64", "int4", 64), ("W4A4, per token and channel", "int4", 0), ("W4A8, per token and channel", "int8", 0))


def main() -> None:
    """Measures both and writes benchmarks/results/plugin_speed_attention.json and plugin_speed_linear.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", type=Path)
    folder = parser.parse_args().libraries
    torch.manual_seed(SEED)
    gpu = {"gpu": torch.cuda.get_device_name(), "sm": "".join(map(str, torch.cuda.get_device_capability()))}
    attention = _launcher(folder, "block_sparse_attention")
    rows = [row | gpu for size in (64, 128) for tokens in TOKENS for row in attention_rows(attention, size, tokens)]
    write_result("plugin_speed_attention", SEED, rows, "block_sparse_attention, bf16, batch 1")
    multiply = _launcher(folder, "lowrank_linear")
    rows = [linear_row(multiply, *shape, *form) | gpu for shape in SHAPES for form in FORMS]
    write_result("plugin_speed_linear", SEED, rows, f"lowrank_linear, bf16, rank {RANK}")


def _launcher(folder: Path, plugin: str) -> Any:
    library = ctypes.CDLL(os.fspath((folder / f"libdexport_{plugin}.so").absolute()))
    return getattr(library, f"dexport_{plugin}")


def attention_rows(launcher: Any, size: int, tokens: int) -> list[dict[str, Any]]:
    """One row for each density."""
    query, key, value = (torch.randn(1, HEADS, tokens, size, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    dense = {name: _milliseconds(partial(_sdpa, query, key, value, backend)) for name, backend in _DENSE.items()}
    wanted = _sdpa(query, key, value, SDPBackend.FLASH_ATTENTION)
    rows = []
    for density in DENSITIES:
        indices, counts, true_density = _lists(tokens, density)
        out = torch.full_like(query, torch.nan)
        blocks = (size**-0.5, QUERY_BLOCK, 64)
        asked = attention_request(query, key, value, indices, counts, None, None, *blocks, out, lse=None)
        time = _milliseconds(partial(_call, launcher, asked))
        _check(out, wanted if density == 1 else None)
        efficiencies = {f"efficiency / {name}": true_density * t / time for name, t in dense.items()}
        work = 4 * HEADS * tokens**2 * size * true_density
        rows.append({"head": size, "tokens": tokens, "density": true_density, "ms": time, "TFLOP/s": work / time / 1e9, **efficiencies})
    return rows


_DENSE = {"FlashAttention-2": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}


def _sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, backend: SDPBackend) -> torch.Tensor:
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(query, key, value)


def _lists(tokens: int, density: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Random ids of blocks of keys in ascending order, and the density that whole blocks give."""
    query_blocks, key_blocks = tokens // QUERY_BLOCK, tokens // 64
    count = max(round(density * key_blocks), 1)
    ids = torch.rand(HEADS * query_blocks, key_blocks, device="cuda").argsort(-1)[:, :count].sort(-1).values
    indices = ids.view(1, HEADS, query_blocks, count).to(torch.int32).contiguous()
    return indices, torch.full(indices.shape[:-1], count, dtype=torch.int32, device="cuda"), count / key_blocks


def linear_row(launcher: Any, name: str, rows: int, inputs: int, outputs: int, form: str, number: str, block: int) -> dict[str, Any]:
    """One shape in one form."""
    case = _linear_case(rows, inputs, outputs, block)
    x, down, up = case["x"], case["down"], case["up"]
    full = torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16)
    out = torch.full((rows, outputs), torch.nan, device="cuda", dtype=torch.bfloat16)
    fused, keep = _linear_call(launcher, case, number, block, out)
    without = case | {"down": down[:0], "up": up[:, :0]}
    plain, keep_too = _linear_call(launcher, without, number, block, torch.empty_like(out))
    unfused = keep_too[0]

    def branch_apart() -> None:
        plain()
        unfused.addmm_(linear(x, down), up.t())

    times = [_milliseconds(call) for call in (fused, lambda: linear(x, full), branch_apart)]
    branch_apart()
    fused()
    _check(keep[0], unfused)
    work = 2 * rows * inputs * outputs
    return {
        "layer": name,
        "rows x inputs x outputs": f"{rows} x {inputs} x {outputs}",
        "form": form,
        "ms": times[0],
        "TOP/s": work / times[0] / 1e9,
        "cuBLAS bf16 / this": times[1] / times[0],
        "branch apart / this": times[2] / times[0],
    }


def _linear_case(rows: int, inputs: int, outputs: int, block: int) -> dict[str, Any]:
    random: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    return {
        "x": torch.randn(rows, inputs, **random),
        "weight": torch.randint(0, 256, (outputs, inputs // 2), device="cuda", dtype=torch.uint8),
        "weight_scale": 0.01 + 0.01 * torch.rand(inputs // 64 if block else 1, outputs, **random),
        "down": torch.randn(RANK, inputs, **random) * inputs**-0.5,
        "up": torch.randn(outputs, RANK, **random),
        "bias": torch.randn(outputs, **random),
    }


def _linear_call(
    launcher: Any, case: dict[str, Any], number: str, block: int, out: torch.Tensor
) -> tuple[Callable[[], None], tuple[torch.Tensor, ...]]:
    """A call, and what has to outlive it: the result and the workspace."""
    options: dict[str, Any] = {"gate": None, "residual": None, "activation_scale": None, "gelu": False, "y": out}
    asked = linear_request(**case, **options, activation_format=number, activation_block=block)
    rows, inputs = case["x"].shape
    workspace = torch.empty(4 * rows * (inputs + RANK) + (1 << 20), device="cuda", dtype=torch.uint8)  # more than is needed
    asked.workspace = workspace.data_ptr()
    return lambda: _call(launcher, asked), (out, workspace)


def _call(launcher: Any, asked: ctypes.Structure) -> None:
    code = launcher(ctypes.byref(asked), ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))
    if code != 0:
        raise RuntimeError(f"the launcher ended with {code}")


def _check(found: torch.Tensor, wanted: torch.Tensor | None) -> None:
    if not found.isfinite().all():
        raise RuntimeError("the result is not finite")
    if wanted is not None and (error := ((found - wanted).float().norm() / wanted.float().norm()).item()) > 1e-2:
        raise RuntimeError(f"relative error {error:.2g}")


def _milliseconds(call: Callable[[], Any], batches: int = 7) -> float:
    """Of one call: the median of batches that each take about 20 ms."""
    call()
    torch.cuda.synchronize()
    calls = max(1, round(20 / max(_batch(call, 3), 1e-3)))
    return statistics.median(_batch(call, calls) for _ in range(batches))


def _batch(call: Callable[[], Any], calls: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / calls


if __name__ == "__main__":
    main()
