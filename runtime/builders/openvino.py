"""OpenVINO engines: ONNX -> IR (xml + bin), weights at the precision of the build.

`python -m dexport.runtime.builders.openvino MODEL.onnx OUT.xml` does the same, in a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from dexport.errors import DexportError, Failure, UserError
from dexport.runtime.builders.builder import Layer, Profile
from dexport.runtime.device import Device


@dataclass(frozen=True)
class OpenVinoFiles:
    """The IR: topology and weights."""

    xml: Path
    bin: Path


_MODULE = "dexport.runtime.builders.openvino"
_MEMORY_BASE, _MEMORY_SHARE = 128 << 20, 2.1
"""Measured with OpenVINO 2026.4: peaks of 588 and 1613 MiB for 256 and 768 MiB of weights, file pages included."""


@dataclass(frozen=True)
class OpenVinoBuilder:
    """Makes OpenVINO IR, which any processor runs; implements `builder.Builder`."""

    format: str = "openvino"
    native: bool = False
    tools: Mapping[str, str] = field(default_factory=lambda: {"openvino": _version()})

    def check(self, device: Device) -> None:
        """Nothing to refuse: IR is the same everywhere, and the package has been found."""

    def options(self, profiles: Sequence[Profile]) -> tuple[str, ...]:
        """None: sizes stay free until the engine is loaded."""
        return ()

    def command(self, onnx: Path, folder: Path, name: str, options: Sequence[str]) -> list[str]:
        """This module as a program."""
        return [sys.executable, "-m", _MODULE, str(onnx), str(folder / f"{name}.xml")]

    def files(self, name: str) -> tuple[str, ...]:
        """Topology and weights."""
        return f"{name}.xml", f"{name}.bin"

    def layer_files(self, name: str) -> tuple[str, ...]:
        """None, see `layers`."""
        return ()

    def layers(self, folder: Path, name: str) -> list[Layer]:
        """Known only when the model is compiled for its sizes, see `OpenVinoEngine.layers`."""
        return []

    def memory_needed(self, weight_bytes: int) -> int:
        """Weights as they are read and as they are written."""
        return _MEMORY_BASE + int(_MEMORY_SHARE * weight_bytes)


def _version() -> str:
    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError as error:
        raise _missing() from error


def _missing() -> UserError:
    return UserError("target cpu", expected="the openvino package", got="it is not installed", fix="pip install 'dexport[openvino]'")


def ir_from_onnx(onnx: Path, out: Path) -> OpenVinoFiles:
    """Converts an ONNX file with external data into `out` (*.xml) and the *.bin beside it.

    Weights keep the type they have in the ONNX file: OpenVINO stores half-precision ones as such and widens them when it compiles. Integers
    of 4 bits, which its converter widens to 8, are narrowed again.

    Raises:
        UserError: OpenVINO is not installed.
        Failure: OpenVINO cannot convert the model.
    """
    try:
        import openvino
    except ImportError as error:
        raise _missing() from error
    try:
        model = openvino.convert_model(onnx)
        packed = _narrowed(openvino, model)
        openvino.save_model(model, out, compress_to_fp16=False)
        del packed
        openvino.Core().read_model(out)  # a full disk truncates the weights without an error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise Failure(
            onnx.name, expected="a model that OpenVINO can convert", got=reason, fix="report this with the output of --debug"
        ) from error
    return OpenVinoFiles(out, out.with_suffix(".bin"))


_LEAST_ELEMENTS = 64


def _narrowed(openvino: Any, model: Any) -> list[Any]:
    """Stores int8 constants that fit into 4 bits as i4 behind a conversion, which the plugin computes when it compiles the model.

    Returns the packed arrays: OpenVINO's constants look into them and do not keep them alive.
    """
    ops, kept = openvino.opset13, []
    for op in model.get_ops():
        if op.get_type_name() != "Constant" or op.get_element_type() != openvino.Type.i8:
            continue
        codes = op.get_data()
        if codes.size < _LEAST_ELEMENTS or codes.size % 2 or codes.min() < -8 or codes.max() > 7:
            continue
        nibbles = codes.reshape(-1).view(np.uint8) & 15
        packed = nibbles[0::2] | (nibbles[1::2] << 4)
        kept.append(packed)
        narrow = ops.constant(openvino.Tensor(packed, list(codes.shape), openvino.Type.i4))
        wide = ops.convert(narrow, "i8")
        for reader in list(op.output(0).get_target_inputs()):
            reader.replace_source_output(wide.output(0))
    return kept


def main(arguments: Sequence[str]) -> int:
    """Converts `arguments` (ONNX, XML); errors are one line on stderr."""
    onnx, out = arguments
    try:
        ir_from_onnx(Path(onnx), Path(out))
    except DexportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
