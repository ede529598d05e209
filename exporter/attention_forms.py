"""Which quantized attentions a target computes exactly: FP8 with all four operands in e4m3, where the compiler fuses it; nothing else.

Measured in plans of TensorRT-RTX 1.7.1 for SM89 and SM120 (float16 and bfloat16, heads of 8 to 256, up to 4096 tokens, masks, text):
e4m3 query, key, probabilities and value make one fused attention with FP8 operands and as many other kernels as 16 bits; without the
probabilities it falls apart into two GEMMs with the scores in memory between them, and so does float32 in either form. INT8 never fuses
(exporter/engines/kernels.py reads the plans). Plans say which kernels run, not how fast. For a Jetson TensorRT's documentation is all
that is known. Probabilities that are powers of two (DGQ) are imitated in PyTorch alone.
"""

from __future__ import annotations

from dexport.passes.quantization.recipe import AttentionSpec
from dexport.targets.formats import Support
from dexport.targets.target import Target

_FORMAT = "e4m3"


def exact_attention(target: Target, spec: AttentionSpec, precision: str) -> Support:
    """Whether the target computes attention as a recipe says; the reason says what it lacks.

    Args:
        precision: of what is not quantized.
    """
    if not (spec.format == spec.probabilities == _FORMAT) or spec.start_tokens:
        return Support(False, f"no kernel multiplies probabilities in {spec.probabilities} with values in {spec.format}")
    answer = target.supports("fp8")
    if answer and precision == "fp32":
        return Support(False, "attention between fp32 layers is not fused")
    return answer


def describe_attention(spec: AttentionSpec) -> str:
    """In a few words: "attention in e4m3, probabilities in e4m3"."""
    text = " to text" if spec.keys == "text" else ""
    count = f"first {spec.start_tokens} tokens" if spec.start_tokens > 1 else "first token"
    but = f", but for its {count}" if spec.start_tokens else ""
    return f"attention{text} in {spec.format}, probabilities in {spec.probabilities}{but}"
