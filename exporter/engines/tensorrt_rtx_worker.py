"""Builds one TensorRT-RTX engine, in a process of its own: `python -m dexport.exporter.engines.tensorrt_rtx_worker`.

The compiler can take its process down with it (a segmentation fault on a bad graph), so `tensorrt_rtx.build_engine` starts
this module, hands it a request as JSON on standard input and reads the answer from the file that the request names.
Whatever the compiler prints goes to standard error. TensorRT's own Python API is used: Polygraphy drives it as well, but
flattens the ONNX parser's records (node, operator, reason) into one text.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Refused(Exception):
    """TensorRT-RTX said no. `answer` is what the parent process gets to read."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer
        super().__init__(str(answer))


def main() -> None:
    """Reads the request from standard input, builds, and writes the answer; a refusal by the compiler is an answer too."""
    request = json.load(sys.stdin)
    try:
        answer = _build(request)
    except Refused as refused:
        answer = refused.answer
    Path(request["answer"]).write_text(json.dumps(answer))


def _build(request: Mapping[str, Any]) -> dict[str, Any]:
    import tensorrt_rtx as trt

    class Log(trt.ILogger):  # type: ignore[misc]
        """Prints warnings and errors, and keeps the errors: `build_serialized_network` gives no reason, only None."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                print(message, file=sys.stderr, flush=True)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    # By path, because only then does the parser find weights stored beside the graph.
    if not parser.parse_from_file(request["onnx"]):
        raise Refused(_parser_error(parser.get_error(0)))
    config = builder.create_builder_config()
    if not request["tf32"]:
        config.clear_flag(trt.BuilderFlag.TF32)
    config.num_compute_capabilities = len(request["sm"])
    for position, sm in enumerate(request["sm"]):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), position)
    inputs = {t.name: tuple(t.shape) for t in (network.get_input(i) for i in range(network.num_inputs))}
    for position, shapes in enumerate(request["profiles"]):
        _check_profile(f"profile {position}", shapes, inputs)
        profile = builder.create_optimization_profile()
        for name, (low, best, high) in shapes.items():
            profile.set_shape(name, low, best, high)
        if config.add_optimization_profile(profile) < 0:
            raise Refused(
                {"error": "profile", "where": f"profile {position}", "got": _plain("; ".join(log.errors)) or "a rejected profile"}
            )
    if not request["profiles"]:
        _check_profile("no profile", {}, inputs)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Refused({"error": "build", "got": _plain("; ".join(dict.fromkeys(log.errors))) or "no plan and no message"})
    try:
        with open(request["plan"], "wb") as file:
            file.write(memoryview(plan))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Refused({"error": "write", "got": error.strerror}) from error
    return {"version": str(trt.__version__)}


def _parser_error(error: Any) -> dict[str, Any]:
    """The record of the ONNX parser as a plain answer."""
    op, got = error.node_operator(), _plain(error.desc())
    if "Plugin not found" in got or got == "false":  # how the parser says that it does not know an operator
        got = "an operator it does not support"
    return {"error": "parse", "node": error.node_name() or f"number {error.node()}", "op": op, "got": got}


def _check_profile(where: str, shapes: Mapping[str, Sequence[Any]], inputs: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses a profile that names no input of the network, has another rank or fixed size, or leaves out a dynamic input."""
    for name, (low, best, high) in shapes.items():
        if name not in inputs:
            raise Refused({"error": "profile", "where": where, "got": f"{name!r}, while the inputs are {', '.join(inputs)}"})
        for shape in (low, best, high):
            if len(shape) != len(inputs[name]) or any(size not in (-1, given) for size, given in zip(inputs[name], shape)):
                got = f"{tuple(shape)} for {name!r}, whose shape is {inputs[name]}"
                raise Refused({"error": "profile", "where": where, "got": got})
        if not all(a <= b <= c for a, b, c in zip(low, best, high)):
            got = f"{tuple(low)}, {tuple(best)}, {tuple(high)} for {name!r}"
            raise Refused({"error": "profile", "where": where, "got": got})
    dynamic = [name for name, shape in inputs.items() if -1 in shape and name not in shapes]
    if dynamic:
        raise Refused({"error": "profile", "where": where, "got": f"no shape for {', '.join(dynamic)}"})


def _plain(message: str) -> str:
    """One line, without what TensorRT says about the missing driver while it reports something else."""
    lines = [line for line in message.splitlines() if "catchCudaError" not in line and not line.startswith("Invalid Node - ")]
    return re.sub(r"\s+", " ", " ".join(lines)).strip()


if __name__ == "__main__":
    main()
