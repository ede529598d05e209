"""Did the compiler compute in what the recipe asked for? Compares the kit's ONNX nodes with the layers of the engine.

A compiler that has no kernel for a quantized product widens its operands and says nothing; only the engine's own layers show it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dexport.runtime.builders.builder import Layer
from dexport.runtime.manifest import JsonObject

_WIDTH = {"nvfp4": 4, "int4": 4, "fp8": 8, "int8": 8, "fp16": 16, "bf16": 16, "fp32": 32}
_MOST_NAMED = 4


@dataclass(frozen=True)
class Product:
    """A matrix product or convolution of a model.

    Attributes:
        nodes: name of its ONNX node, then of those that only scale its result or add to it, of the output that it is, and of what
            dequantizes its input: a compiler that fuses them may call the whole after any of them.
        precision: the number format that it is asked to compute in.
    """

    nodes: tuple[str, ...]
    precision: str


@dataclass(frozen=True)
class Precisions:
    """What an engine computes in.

    Attributes:
        layers: number of layers per precision; of a layer with several the narrowest counts.
        products: the same for matrix products, convolutions and attention alone.
        fallbacks: node -> (asked, got), where a product is computed in something wider.
        unknown: products that the layers do not name, so that nothing can be said of them.
    """

    layers: dict[str, int]
    products: dict[str, int]
    fallbacks: dict[str, tuple[str, str]]
    unknown: tuple[str, ...]

    def to_json(self) -> JsonObject:
        """For `Variant.kernels`."""
        fallbacks = [{"node": node, "asked": asked, "got": got} for node, (asked, got) in self.fallbacks.items()]
        return {"layers": self.layers, "products": self.products, "fallbacks": fallbacks, "not_named": len(self.unknown)}

    def warning(self, name: str) -> str:
        """One line about the fallbacks; empty where there are none."""
        if not self.fallbacks:
            return ""
        kinds = Counter(self.fallbacks.values())
        what = ", ".join(f"{count} asked for {asked} but computed in {got}" for (asked, got), count in sorted(kinds.items()))
        nodes = list(self.fallbacks)
        more = f" and {len(nodes) - _MOST_NAMED} more" if len(nodes) > _MOST_NAMED else ""
        return f"{name}: products fell back: {what} ({', '.join(nodes[:_MOST_NAMED])}{more})"


def asked_to_json(products: Sequence[Product]) -> JsonObject:
    """How a kit keeps what is asked, in `Variant.kernels`."""
    return {"asked": [[product.precision, *product.nodes] for product in products]}


def asked_of(kernels: JsonObject | None) -> list[Product]:
    """What a kit asks for; what is not in the form that `asked_to_json` gives is left out, as it only serves a report."""
    entries = (kernels or {}).get("asked")
    lists = [entry for entry in entries if isinstance(entry, list)] if isinstance(entries, list) else []
    return [Product(tuple(entry[1:]), entry[0]) for entry in lists if len(entry) > 1 and all(isinstance(part, str) for part in entry)]


def compare_precisions(asked: Sequence[Product], layers: Sequence[Layer]) -> Precisions:
    """Compares what products were asked to compute in with the layers that they became part of."""
    found: dict[str, set[str]] = {}
    for layer in layers:
        for node in layer.nodes if layer.multiplies else ():
            found.setdefault(node, set()).update(layer.precisions)
    got = {product: next((_narrowest(found[node]) for node in product.nodes if found.get(node)), None) for product in asked}
    return Precisions(
        layers=_counted(layers),
        products=_counted([layer for layer in layers if layer.multiplies]),
        fallbacks={product.nodes[0]: (product.precision, one) for product, one in got.items() if one and _wider(one, product.precision)},
        unknown=tuple(product.nodes[0] for product, one in got.items() if one is None),
    )


def _wider(got: str, asked: str) -> bool:
    return _WIDTH.get(got, 0) > _WIDTH.get(asked, max(_WIDTH.values()))


def _counted(layers: Sequence[Layer]) -> dict[str, int]:
    return dict(sorted(Counter(_narrowest(layer.precisions) for layer in layers if layer.precisions).items()))


def _narrowest(precisions: set[str] | frozenset[str]) -> str:
    return min(sorted(precisions), key=lambda one: _WIDTH.get(one, 0))
