"""NNCF's post-training quantization of the plain export, run by OpenVINO on the processor.

OpenVINO's low-precision transformations are off: on processors without VNNI its integer kernels saturate in 16 bits, which cost 16 dB when
measured (37.9 against 53.9 dB over 8 pictures). What is left is the arithmetic that the quantized model says, in float32.
"""

from __future__ import annotations

from pathlib import Path

from peers_onnx import PICTURES, Feed, numpy_denoiser
from quality_data import Example, Quantized, average_bits, loop_linears


def nncf_int8(example: Example, folder: Path, nodes: dict[str, str], recorded: list[Feed], only_loop: bool) -> Quantized:
    """`nncf.quantize` for transformers, SmoothQuant and bias correction included, as documented; with all of the calibration's calls.

    Args:
        only_loop: quantize the loop's linears only, as every other peer does; otherwise all that NNCF chooses.
    """
    import logging

    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)

    model = openvino.Core().read_model(folder / "plain.onnx")
    ours = set(nodes.values())
    left = [operation.get_friendly_name() for operation in model.get_ops() if operation.get_friendly_name() not in ours]
    scope = nncf.IgnoredScope(names=left, validate=False) if only_loop else None
    options = {"model_type": nncf.ModelType.TRANSFORMER, "subset_size": len(recorded), "ignored_scope": scope}
    quantized = nncf.quantize(model, nncf.Dataset(recorded), **options)
    found = sum(operation.get_type_name() == "FakeQuantize" for operation in quantized.get_ops())
    if not found:
        raise RuntimeError("NNCF quantized nothing")
    compiled = openvino.Core().compile_model(quantized, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": "NO"})
    denoiser = numpy_denoiser(lambda values: compiled(values)[0], [i.get_any_name() for i in model.inputs])
    # Weights are symmetric per output channel; SmoothQuant's factors multiply the input.
    bits = average_bits(loop_linears(example.transformer), 8, lambda name, linear: linear.out_features + linear.in_features)
    name = "NNCF" if only_loop else "NNCF, all that it chooses"
    return Quantized(name, "int8 channel", "int8 tensor", bits, denoiser, PICTURES)
