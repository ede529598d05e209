"""The ONNX nodes of dexport's plugins, as plugins/NAME/manifest.json describes them: what one may look like."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto

from dexport.runtime.builders.plugins import plugin_folder

_TYPES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
_FOUND_BY = ("plugin_version", "plugin_namespace")


@dataclass(frozen=True)
class PluginInput:
    """One input of a node.

    Attributes:
        types: element types; empty for that of the first input.
        present_if: the attribute that is 1 where the node has this input; empty for one that is always there.
    """

    name: str
    types: tuple[int, ...]
    present_if: str


@dataclass(frozen=True)
class PluginNode:
    """What a plugin's node may be.

    Attributes:
        plugin: folder of the plugin.
        domain: of the node, and namespace of its creator in TensorRT.
        attributes: the values that each may have; all of them are there.
    """

    plugin: str
    domain: str
    name: str
    version: str
    attributes: Mapping[str, tuple[int, ...]]
    inputs: tuple[PluginInput, ...]

    def faults(self, node: NodeProto, types: Sequence[int]) -> Iterator[tuple[str, str]]:
        """(expected, got) for everything that the plugin would refuse.

        Args:
            types: element types of the node's inputs; UNDEFINED where the model does not say.
        """
        given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        for name, wanted in zip(_FOUND_BY, (self.version, self.domain)):
            if given.pop(name, b"") != wanted.encode():
                yield f"attribute {name} to be {wanted}, by which the parser finds the plugin", "something else"
        for name, values in self.attributes.items():
            if given.get(name) not in values:
                yield f"attribute {name} to be {' or '.join(map(str, values))}", str(given.get(name))
        if other := sorted(given.keys() - self.attributes.keys()):
            yield f"the attributes {', '.join(self.attributes)}", other[0]
        inputs = [one for one in self.inputs if not one.present_if or given.get(one.present_if) == 1]
        if len(inputs) != len(node.input):
            yield f"the inputs {', '.join(one.name for one in inputs)}", f"{len(node.input)} inputs"
            return
        for one, kind in zip(inputs, types):
            legal = one.types or (types[0],)
            if TensorProto.UNDEFINED not in (kind, *legal) and kind not in legal:
                names = " or ".join(map(TensorProto.DataType.Name, legal))
                yield f"{one.name} of type {names}", TensorProto.DataType.Name(kind)


@cache
def plugin_node(plugin: str) -> PluginNode:
    """The node of a plugin of dexport, by the name of its folder."""
    manifest = json.loads((plugin_folder(plugin) / "manifest.json").read_text(encoding="utf-8"))
    found = manifest["plugin"]
    inputs = tuple(PluginInput(entry["name"], _types(entry), entry.get("if", "")) for entry in manifest["inputs"])
    attributes = {name: tuple(values) for name, values in manifest["attributes"].items()}
    return PluginNode(plugin, found["namespace"], found["name"], found["version"], attributes, inputs)


def plugins_of(path: Path, plugins: Sequence[str]) -> frozenset[str]:
    """Which of the plugins an ONNX file has nodes of."""
    known = {(node.domain, node.name): node.plugin for node in map(plugin_node, plugins)}
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    return frozenset(known[node.domain, node.op_type] for node in nodes if (node.domain, node.op_type) in known)


def _types(entry: Mapping[str, object]) -> tuple[int, ...]:
    """TensorRT's own where they differ; "as x" is the type of the first input."""
    special, names = entry.get("tensorrt"), entry["dtypes"]
    if isinstance(special, dict):
        return (_TYPES[special["dtype"]],)
    assert isinstance(names, list)
    return tuple(_TYPES[name] for name in names if name in _TYPES)
