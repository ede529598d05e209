"""What is known of plugins' nodes is what their C++ says; the nodes themselves are checked in test_legality.py."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import onnx.parser

from dexport.exporter.plugin_nodes import plugin_node, plugins_of
from dexport.runtime.builders.plugins import plugin_folder
from dexport.targets.formats import PLUGINS


def test_attributes_and_name_are_those_of_the_creator() -> None:
    for name in {name for names in PLUGINS.values() for name in names}:
        node, source = plugin_node(name), (plugin_folder(name) / "tensorrt_plugin.cpp").read_text(encoding="utf-8")
        assert re.findall(r'\{"(\w+)", &Attributes::', source) == list(node.attributes)
        assert f'name = "{node.name}"' in source
        shared = (plugin_folder(name).parent / "cuda" / "tensorrt_plugin.h").read_text(encoding="utf-8")
        assert f'plugin_version = "{node.version}"' in shared and f'plugin_namespace = "{node.domain}"' in shared
        assert {one.present_if for one in node.inputs} <= {"", *node.attributes}


def test_plugins_of_a_model(tmp_path: Path) -> None:
    for domain, found in (("dexport", {"lowrank_linear"}), ("other", set())):
        head = f'<ir_version: 9, opset_import: ["" : 20, "{domain}" : 1]>'
        text = f"{head} g (float[2] x) => (float[2] y) {{ y = {domain}.LowrankLinear(x) }}"
        onnx.save(onnx.parser.parse_model(text), str(tmp_path / "m.onnx"))
        assert plugins_of(tmp_path / "m.onnx", ("lowrank_linear",)) == found
        assert not plugins_of(tmp_path / "m.onnx", ())
