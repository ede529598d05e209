"""What was asked of a compiler against what it made: fallbacks by name, counts, and products that the layers do not name."""

from __future__ import annotations

from dexport.runtime.builders.builder import Layer
from dexport.runtime.finalize.precision import Product, asked_of, asked_to_json, compare_precisions


def layer(nodes: str, precisions: str, *, multiplies: bool = True) -> Layer:
    return Layer(frozenset(nodes.split()), "gemm" if multiplies else "kgen", frozenset(precisions.split()), multiplies)


ASKED = [Product(("qkv",), "int8"), Product(("up", "scale", "bias"), "int8"), Product(("head",), "fp16")]


def test_as_asked() -> None:
    found = compare_precisions(ASKED, [layer("qkv add", "int8"), layer("up", "int8 fp16"), layer("head", "fp16")])
    assert found.products == {"fp16": 1, "int8": 2} and not found.fallbacks and not found.unknown and not found.warning("loop")


def test_wider_than_asked_is_a_fallback_and_narrower_is_none() -> None:
    found = compare_precisions(ASKED, [layer("qkv", "fp16"), layer("up", "fp32"), layer("head", "int8")])
    assert found.fallbacks == {"qkv": ("int8", "fp16"), "up": ("int8", "fp32")}
    warning = "loop: products fell back: 1 asked for int8 but computed in fp16, 1 asked for int8 but computed in fp32 (qkv, up)"
    assert found.warning("loop") == warning
    assert found.to_json()["fallbacks"][0] == {"node": "qkv", "asked": "int8", "got": "fp16"}


def test_a_fused_product_may_be_called_after_its_bias() -> None:
    found = compare_precisions(ASKED, [layer("bias", "fp32"), layer("scale", "int8", multiplies=False)])
    assert found.fallbacks == {"up": ("int8", "fp32")} and found.unknown == ("qkv", "head")
    assert found.layers == {"fp32": 1, "int8": 1} and found.to_json()["not_named"] == 2


def test_long_lists_are_cut() -> None:
    many = [Product((f"n{i}",), "int8") for i in range(6)]
    assert "(n0, n1, n2, n3 and 2 more)" in compare_precisions(many, [layer(f"n{i}", "fp16") for i in range(6)]).warning("loop")


def test_what_is_asked_survives_the_manifest_and_nonsense_is_left_out() -> None:
    assert asked_of(asked_to_json(ASKED)) == ASKED
    assert asked_of(None) == asked_of({}) == asked_of({"asked": 3}) == asked_of({"asked": [3, [], ["int8"], ["int8", 1]]}) == []
