"""Which attentions a target computes exactly, and what they are called."""

from __future__ import annotations

import pytest

from dexport.exporter.attention_forms import describe_attention, exact_attention
from dexport.passes.quantization.recipe import AttentionSpec
from dexport.targets.catalogue import find

FP8 = AttentionSpec(format="e4m3", probabilities="e4m3")
DGQ = AttentionSpec(format="int8", probabilities="log2-8", keys="text", start_tokens=1)


@pytest.mark.parametrize(
    ("target", "precision", "reason"),
    [
        ("rtx-4090", "fp16", ""),
        ("rtx-5090", "bf16", ""),
        ("jetson-thor@jetpack-7.0", "fp16", ""),
        ("rtx-4090", "fp32", "not fused"),
        ("rtx-3090", "fp16", "fp8 needs SM 8.9"),
        ("jetson-orin@jetpack-6.2", "fp16", "fp8 needs SM 8.9"),
        ("cpu", "fp32", "no processor has fp8 arithmetic that OpenVINO uses"),
        ("onnxruntime-cuda", "fp16", "does not fuse fp8"),
    ],
)
def test_fp8_needs_a_gpu_that_has_it_and_16_bits_around_it(target: str, precision: str, reason: str) -> None:
    answer = exact_attention(find(target), FP8, precision)
    assert bool(answer) == (not reason) and reason in answer.reason


def test_nothing_else_is_exact_anywhere() -> None:
    for spec in (DGQ, AttentionSpec(format="int8", probabilities="e4m3"), AttentionSpec(format="e4m3", probabilities="log2-4")):
        assert not exact_attention(find("rtx-4090"), spec, "fp16")
    assert not exact_attention(find("rtx-4090"), AttentionSpec(format="e4m3", probabilities="e4m3", start_tokens=1), "fp16")


def test_words() -> None:
    assert describe_attention(FP8) == "attention in e4m3, probabilities in e4m3"
    assert describe_attention(DGQ) == "attention to text in int8, probabilities in log2-8, but for its first token"
