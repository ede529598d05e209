"""What a target computes exactly, and the nearest form where it does not."""

from __future__ import annotations

import pytest

from dexport.exporter.quantized_forms import exact, nearest, needs_lowrank_linear
from dexport.passes.quantization.recipe import ActivationSpec, Treatment, WeightSpec
from dexport.targets.catalogue import find

JETSON = "jetson-orin@jetpack-6.2"
ALL = ("cpu", "onnxruntime-cpu", "rtx-3060", "rtx-4090", "rtx-5090", JETSON)


def _form(weight: str, granularity: str = "channel", activation: str = "", mode: str = "static", per: str = "tensor") -> Treatment:
    activations = ActivationSpec(format=activation, mode=mode, granularity=per) if activation else None
    return Treatment(weights=WeightSpec(format=weight, granularity=granularity), activations=activations)


FORMS = {
    "w8a8": _form("int8", "channel", "int8"),
    "w8a8 table": _form("int8", "channel", "int8", "table"),
    "w6a6 token": _form("int6", "channel", "int6", "dynamic", "token"),
    "w4a8": _form("int4", "channel", "int8"),
    "fp4 a8": _form("e2m1", "channel", "int8"),
    "w4 block": _form("int4", "block-64"),
    "w4 block 32": _form("int4", "block-32"),
    "w4a8 block token": _form("int4", "block-64", "int8", "dynamic", "token"),
    "w4a8 block block": _form("int4", "block-64", "int8", "dynamic", "block-64"),
    "w4a4 block block": _form("int4", "block-64", "int4", "dynamic", "block-64"),
    "fp8": _form("e4m3", "tensor", "e4m3"),
    "fp4 fp6": _form("e2m1", "channel", "e3m2", "dynamic", "token"),
    "nvfp4": _form("nvfp4", "channel", "nvfp4", "dynamic"),
    "mxfp4": _form("mxfp4", "channel", "mxfp4", "dynamic"),
    "searched": _form("e2m1|e1m2", "tensor", "e3m4|e4m3"),
}
EXACT = {
    "w8a8": ALL,
    "w8a8 table": ALL,
    "w6a6 token": ALL,
    "w4a8": ALL,
    "fp4 a8": ALL,
    "w4 block": ("cpu", "onnxruntime-cpu", "rtx-3060", "rtx-4090", "rtx-5090"),
    "w4 block 32": ("cpu", "onnxruntime-cpu"),
    "w4a8 block token": (JETSON,),
    "w4a8 block block": ("onnxruntime-cpu", JETSON),
    "w4a4 block block": (JETSON,),
    "fp8": ("rtx-4090", "rtx-5090"),
    "nvfp4": ("rtx-5090",),
}


@pytest.mark.parametrize("name", FORMS)
def test_what_each_target_computes_exactly(name: str) -> None:
    answers = {target: exact(find(target), FORMS[name]) for target in ALL}
    assert tuple(target for target in ALL if answers[target]) == EXACT.get(name, ())
    assert all(answer.reason for answer in answers.values() if not answer)


@pytest.mark.parametrize("target", [*ALL, "onnxruntime-cuda"])
@pytest.mark.parametrize("name", FORMS)
def test_the_nearest_form_is_exact_and_the_same_where_nothing_is_wrong(name: str, target: str) -> None:
    found, given = find(target), FORMS[name]
    replacement = nearest(found, given)
    assert exact(found, replacement)
    assert (replacement == given) == bool(exact(found, given))
    assert replacement.weights is not None


@pytest.mark.parametrize(
    ("name", "target", "wanted"),
    [
        ("w4a8 block token", "rtx-4090", _form("int8", "channel", "int8", "dynamic", "token")),
        ("w4a8 block token", "onnxruntime-cpu", FORMS["w4a8 block block"]),
        ("w4a4 block block", "rtx-4090", _form("int4", "block-64")),
        ("w4 block", JETSON, _form("int4")),
        ("fp8", "rtx-3060", FORMS["w8a8"]),
        ("fp4 fp6", "cpu", _form("e2m1", "channel", "int6", "dynamic", "token")),
        ("nvfp4", "rtx-4090", _form("int4", "block-64")),
    ],
)
def test_what_degrades_to_what(name: str, target: str, wanted: Treatment) -> None:
    assert nearest(find(target), FORMS[name]) == wanted


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        (_form("int4", "block-64", "int8", "table"), True),
        (_form("e1m2|int4", "block-64", "int8", "static"), True),
        (_form("int4", "channel", "int4", "dynamic", "block-64"), True),
        (_form("int4", "channel", "int4", "dynamic", "token"), False),
        (_form("int4", "block-64", "int8", "static", "token"), False),
        (_form("int4", "block-64", "int8", "dynamic-centred", "token"), False),
        (_form("int4", "block-32", "int8", "dynamic", "token"), False),
        (_form("int4", "block-64", "int6", "dynamic", "token"), False),
        (_form("e2m1", "block-64", "int8", "dynamic", "token"), False),
        (_form("int4", "block-64"), False),
    ],
)
def test_what_needs_the_plugin(form: Treatment, wanted: bool) -> None:
    """Whatever TensorRT multiplies itself it goes on multiplying, and TensorRT-RTX has no plugins."""
    assert needs_lowrank_linear(find(JETSON), form) == wanted
    assert not needs_lowrank_linear(find("rtx-4090"), form)
    if wanted:
        assert exact(find(JETSON), form) and not exact(find(JETSON), form, convolution=True)
