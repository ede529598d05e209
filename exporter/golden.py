"""Golden inputs and outputs: one run of the sampling program with the graphs themselves as components, in PyTorch.

The first call of each component is kept, and the picture at the end. `dexport selftest` repeats them on the device with its engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import safetensors.numpy
import torch

from dexport.passes.graph import Graph, materialise, run
from dexport.runtime.interpreter import run_program
from dexport.runtime.manifest import Golden
from dexport.runtime.noise import TorchNoise
from dexport.runtime.program import Program

Array = npt.NDArray[Any]
GOLDEN_SEED = 0
_SHARE_OF_MEMORY = 0.4
_COMPONENT_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 5e-2}  # relative L2 error of one component
_PICTURE_TOLERANCE = {"fp32": 1e-2, "fp16": 5e-2, "bf16": 1e-1}  # of the whole picture, where steps add up
_QUANTIZED_TOLERANCE = 5e-2  # of a quantized component: a value next to the middle of two codes may round either way
_QUANTIZED_PICTURE_TOLERANCE = 1e-1


def fits(graphs: tuple[Graph, ...]) -> bool:
    """Whether all weights together fit into the memory that is free now, with room for activations."""
    needed = sum(w.nbytes for g in graphs for w in g.used_weights().values())
    return needed <= _SHARE_OF_MEMORY * float(psutil.virtual_memory().available)


def golden_of(
    graphs: tuple[Graph, ...], program: Program, tables: Mapping[str, Array], request: Mapping[str, Array], precision: str, folder: Path
) -> tuple[Golden, ...]:
    """Runs the program in PyTorch and writes what it saw.

    Args:
        graphs: every component that the program names.
        request: the program's request buffers, for a batch of 1.
        folder: of the bundle; files go to `golden/`.

    Raises:
        Failure: a component gives NaN or Inf; the message names it.
    """
    (folder / "golden").mkdir(exist_ok=True)
    seen: dict[str, tuple[dict[str, Array], dict[str, Array]]] = {}
    components = {g.name: _recorded(materialise(g), seen) for g in graphs}
    results = run_program(program, components, request, parameters={}, noise=TorchNoise(GOLDEN_SEED), tables=tables)
    quantized = {g.name for g in graphs if _is_quantized(g)}
    component, picture = _COMPONENT_TOLERANCE[precision], _PICTURE_TOLERANCE[precision]
    golden = [
        _write(folder, name, inputs, outputs, max(component, _QUANTIZED_TOLERANCE) if name in quantized else component)
        for name, (inputs, outputs) in seen.items()
    ]
    golden.append(_write(folder, "pipeline", request, results, max(picture, _QUANTIZED_PICTURE_TOLERANCE) if quantized else picture))
    return tuple(golden)


def _is_quantized(graph: Graph) -> bool:
    """Whether a graph rounds activations; rounded weights alone are numbers like any others."""
    operations = (n for n in graph.module.graph.nodes if n.op == "call_function" and str(n.target).startswith("dexport.quantized"))
    return any("none" not in n.args for n in operations)


def _recorded(graph: Graph, seen: dict[str, tuple[dict[str, Array], dict[str, Array]]]) -> Callable[[dict[str, Array]], dict[str, Array]]:
    def call(inputs: dict[str, Array]) -> dict[str, Array]:
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
        outputs = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in run(graph, tensors).items()}
        if graph.name not in seen:
            seen[graph.name] = ({n: np.array(a) for n, a in inputs.items()}, {n: a.copy() for n, a in outputs.items()})
        return outputs

    return call


def _write(folder: Path, name: str, inputs: Mapping[str, Array], outputs: Mapping[str, Array], tolerance: float) -> Golden:
    paths = (f"golden/{name}-inputs.safetensors", f"golden/{name}-outputs.safetensors")
    for path, arrays in zip(paths, (inputs, outputs)):
        safetensors.numpy.save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, folder / path)
    return Golden(inputs=paths[0], outputs=paths[1], component=name, tolerance=tolerance)
