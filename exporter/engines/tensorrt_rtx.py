"""ONNX -> TensorRT-RTX engine, on a machine with or without a GPU.

The network is strongly typed: every tensor has the type that the ONNX gives it, so mixed precision (a fp32 island in a fp16
graph) is the exporter's decision and never the builder's. An engine can serve several GPU generations and several
optimization profiles; profiles share the weights (measured), GPU generations share everything but the kernels chosen when
the engine is first loaded.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dexport.errors import DexportError, Failure, UserError
from dexport.exporter.engines.kernels import KernelSummary, read_kernels
from dexport.targets.tensorrt import RTX_COMPUTE_CAPABILITIES

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]
"""Input name -> its smallest, usual and largest shape. Inputs with a fixed shape may be left out."""

_LOG_LINES = 3
_HARDWARE = re.compile(r"Cannot compile for target\(s\) (.+?), because the model contains HW-specific datatypes: ([\w, ]+)")


@dataclass(frozen=True)
class EngineReport:
    """What was built.

    Args:
        bytes: size of the engine file.
        seconds: wall time of the build, in seconds, with the start of the compiler's process.
        kernels: what the engine runs, read out of it.
        sm: compute capabilities it is for, such as (86, 89).
        tensorrt_version: of TensorRT-RTX, such as "1.7.1.116".
    """

    bytes: int
    seconds: float
    kernels: KernelSummary
    sm: tuple[int, ...]
    tensorrt_version: str


def build_engine(
    onnx_path: Path, out_path: Path, *, sm: Sequence[int], profiles: Sequence[Profile] = (), tf32: bool = False
) -> EngineReport:
    """Builds an engine and reads its kernels. Nothing appears at `out_path` before the engine is complete.

    Args:
        onnx_path: the model; weights may be external data beside it.
        out_path: file to write (its directory must exist).
        sm: compute capabilities to build for, from `RTX_COMPUTE_CAPABILITIES`.
        profiles: optimization profiles, for models with sizes that are not fixed. A profile with equal smallest and largest
            shapes gets kernels for exactly that shape.
        tf32: let fp32 GEMMs and convolutions round their operands to TF32 (10 bits of mantissa). Off unless asked for,
            because a fp32 island stands where precision matters.

    Raises:
        UserError: TensorRT-RTX is not installed, the file is missing, no GPU of `sm` is supported, one of them lacks a number
            format of the model, or a profile does not fit the model's inputs.
        Failure: the model cannot be imported (names node and operator), the build failed, the compiler crashed, or the engine
            cannot be written.
    """
    _check(onnx_path, sm)
    started = time.monotonic()
    partial = out_path.with_name(f".{out_path.name}.{os.getpid()}.partial")
    request = {
        "onnx": str(onnx_path),
        "plan": str(partial),
        "sm": list(sm),
        "profiles": [{name: [list(shape) for shape in shapes] for name, shapes in profile.items()} for profile in profiles],
        "tf32": tf32,
    }
    try:
        answer = _run(request, onnx_path, out_path)
        kernels = read_kernels(partial)
        partial.replace(out_path)
    finally:
        partial.unlink(missing_ok=True)
    return EngineReport(out_path.stat().st_size, time.monotonic() - started, kernels, tuple(sm), answer["version"])


def _check(onnx_path: Path, sm: Sequence[int]) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise UserError(
            "target tensorrt-rtx", expected="the TensorRT-RTX package", got="none installed", fix="run: pip install 'dexport[rtx]'"
        )
    if not onnx_path.is_file():
        raise UserError(str(onnx_path), expected="an ONNX file", got="nothing there", fix="export the component first")
    foreign = [f"SM{one}" for one in sm if one not in RTX_COMPUTE_CAPABILITIES]
    if foreign or not sm:
        raise UserError(
            "TensorRT-RTX engine",
            expected=f"GPUs out of {', '.join(f'SM{one}' for one in sorted(RTX_COMPUTE_CAPABILITIES))}",
            got=", ".join(foreign) or "none",
            fix="choose another target; Jetson engines are built on the device with TensorRT",
        )


def _run(request: Mapping[str, Any], onnx_path: Path, out_path: Path) -> dict[str, Any]:
    """Runs the worker and returns its answer, or raises what became of it."""
    with tempfile.TemporaryDirectory(prefix="dexport-rtx-") as folder:
        answer_path, log_path = Path(folder) / "answer.json", Path(folder) / "log.txt"
        with log_path.open("wb") as log:
            done = subprocess.run(
                [sys.executable, "-m", "dexport.exporter.engines.tensorrt_rtx_worker"],
                input=json.dumps({**request, "answer": str(answer_path)}).encode(),
                stdout=log,
                stderr=log,
                check=False,
            )
        if done.returncode != 0 or not answer_path.exists():
            raise _crashed(onnx_path, done.returncode, log_path.read_text(errors="replace"))
        answer: dict[str, Any] = json.loads(answer_path.read_text())
    if "error" in answer:
        raise _refusal(onnx_path, out_path, request["sm"], answer)
    return answer


def _crashed(onnx_path: Path, code: int, log: str) -> Failure:
    how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    said = [line.strip() for line in log.splitlines() if line.strip() and "catchCudaError" not in line]
    last = "; ".join(said[-_LOG_LINES:]) or "it printed nothing"
    return Failure(
        f"{onnx_path.name}: TensorRT-RTX",
        expected="an engine",
        got=f"a crash of its compiler ({how}), last words: {last}",
        fix="simplify the graph near the nodes it names, or report the model",
    )


def _refusal(onnx_path: Path, out_path: Path, sm: Sequence[int], answer: Mapping[str, Any]) -> DexportError:
    got = answer["got"]
    if answer["error"] == "parse" and answer["op"]:
        node = f"node {answer['node']} ({answer['op']})"
        fix = "spell this node in another way"
        return Failure(f"{onnx_path.name}: {node}", expected="a graph that TensorRT-RTX imports", got=got, fix=fix)
    if answer["error"] == "parse":
        fix = "check the file and the weights beside it"
        return Failure(onnx_path.name, expected="a model that TensorRT-RTX imports", got=got, fix=fix)
    if answer["error"] == "write":
        return Failure(str(out_path), expected="a place to write the engine to", got=got, fix="make room or choose another place")
    if answer["error"] == "profile":
        return UserError(
            f"{onnx_path.name}: {answer['where']}",
            expected="smallest <= usual <= largest shape for every input of free size",
            got=got,
            fix="correct the optimization profiles",
        )
    hardware = _HARDWARE.search(got)
    if hardware:
        return UserError(
            onnx_path.name,
            expected=f"GPUs that compute in {hardware[2].strip()}",
            got=", ".join(sorted(set(hardware[1].replace(",", " ").split()))),
            fix="choose another precision, or build without these GPUs",
        )
    targets = ", ".join(f"SM{one}" for one in sm)
    return Failure(
        f"{onnx_path.name}: TensorRT-RTX for {targets}", expected="an engine", got=got, fix="simplify the graph near the nodes it names"
    )
