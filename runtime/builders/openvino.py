"""OpenVINO engines: ONNX -> IR (xml + bin), weights at the precision of the build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dexport.errors import Failure, UserError


@dataclass(frozen=True)
class OpenVinoFiles:
    """The IR: topology and weights."""

    xml: Path
    bin: Path


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
        fix = "pip install 'dexport[openvino]'"
        raise UserError("target cpu", expected="the openvino package", got="it is not installed", fix=fix) from error
    try:
        model = openvino.convert_model(onnx)
        packed = _narrowed(openvino, model)
        openvino.save_model(model, out, compress_to_fp16=False)
        del packed
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
