"""OpenVINO engines: ONNX -> IR (xml + bin), weights at the precision of the build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dexport.errors import Failure, UserError


@dataclass(frozen=True)
class OpenVinoFiles:
    """The IR: topology and weights."""

    xml: Path
    bin: Path


def ir_from_onnx(onnx: Path, out: Path) -> OpenVinoFiles:
    """Converts an ONNX file with external data into `out` (*.xml) and the *.bin beside it.

    Weights keep the type they have in the ONNX file: OpenVINO stores half-precision ones as such and widens them when it compiles.

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
        openvino.save_model(model, out, compress_to_fp16=False)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise Failure(
            onnx.name, expected="a model that OpenVINO can convert", got=reason, fix="report this with the output of --debug"
        ) from error
    return OpenVinoFiles(out, out.with_suffix(".bin"))
