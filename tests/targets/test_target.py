"""What targets say of themselves: sources, peaks against vendors' figures, formats, refusals."""

import dataclasses

import pytest

from dexport.errors import UserError
from dexport.targets.catalogue import all_targets, find
from dexport.targets.rates import Rates
from dexport.targets.source import Source
from dexport.targets.target import Target

VENDOR_DENSE = [
    ("rtx-2080-ti", "fp16", True, 107.6),
    ("rtx-2080-ti", "int8", False, 215),
    ("rtx-3090", "fp32", False, 35.6),
    ("rtx-3090", "fp16", False, 71),
    ("rtx-3090", "fp16", True, 142),
    ("rtx-3090", "int8", False, 285),
    ("rtx-3090", "int4", False, 569),
    ("rtx-a6000", "fp16", False, 154.8),
    ("rtx-a6000", "int8", False, 309.7),
    ("rtx-4090", "fp32", False, 82.6),
    ("rtx-4090", "fp16", False, 165.2),
    ("rtx-4090", "fp16", True, 330),
    ("rtx-4090", "fp8", False, 330),
    ("rtx-4090", "int8", False, 661),
    ("rtx-4090", "int4", False, 1321),
    ("rtx-6000-ada", "fp16", False, 364),
    ("rtx-6000-ada", "fp8", False, 728),
    ("rtx-5090", "fp32", False, 104.8),
    ("rtx-5090", "fp16", False, 209.5),
    ("rtx-5090", "fp8", True, 838),
    ("rtx-5090", "nvfp4", False, 1676),
    ("rtx-pro-6000", "fp16", False, 503.8),
    ("rtx-pro-6000", "nvfp4", False, 2015),
    ("a100", "fp16", False, 312),
    ("a100", "int8", False, 624),
    ("h100", "fp16", False, 989.4),
    ("h200", "fp8", False, 1979),
    ("b200", "fp16", False, 2250),
    ("jetson-orin", "fp32", False, 5.3),
    ("jetson-orin", "int8", False, 170 / 2),
    ("jetson-orin-nano-8gb@jetpack-6.2", "int8", False, 67 / 2),
    ("jetson-orin-nano-4gb@jetpack-6.2", "int8", False, 34 / 2),
    ("jetson-thor", "nvfp4", False, 2070 / 2),
    ("jetson-thor", "fp16", False, 258.5),
    ("jetson-thor-t4000", "nvfp4", False, 1200 / 2),
]
"""Published figures; those given with structured sparsity are halved. Figures that the vendor cut to two digits rather than
rounded are absent: 22 TOPS for AGX Xavier's GPU (22.6), 40 and 20 for Orin Nano (41 and 20.5)."""


@pytest.mark.parametrize(("name", "format", "fast", "tops"), VENDOR_DENSE)
def test_computed_peaks_reproduce_the_vendors_figures(name: str, format: str, fast: bool, tops: float) -> None:
    assert find(name).peak_tops(format, fast=fast) == pytest.approx(tops, rel=0.02)


def test_every_number_has_a_source() -> None:
    for target in all_targets():
        assert set(target.sources) == set(target.numbers())
        assert all(source.text for source in target.sources.values())


def test_peaks_are_zero_where_hardware_lacks_the_format_and_none_where_it_is_unknown() -> None:
    assert find("jetson-orin").peak_tops("fp8") == 0
    assert find("jetson-thor").peak_tops("int4") == 0
    assert find("rtx-2060").peak_tops("bf16") == 0
    assert find("cpu").peak_tops("fp32") is None


def test_bandwidth_does_not_depend_on_the_gpu_clock() -> None:
    assert find("jetson-orin:30w").bandwidth_gb_s == find("jetson-orin").bandwidth_gb_s


def test_default_precisions() -> None:
    assert find("cpu").default_precision == find("onnxruntime-cpu").default_precision == "fp32"
    assert find("rtx-4090").default_precision == find("jetson-orin").default_precision == "fp16"
    assert find("rtx-2060").precisions == find("jetson-xavier").precisions == ("fp32", "fp16")
    assert find("rtx-3060").precisions == ("fp32", "fp16", "bf16")


def test_memory_left_for_a_bundle() -> None:
    assert find("jetson-orin-nano-8gb").memory_available_gib == pytest.approx(5.6)
    assert find("cpu").memory_available_gib is None


@pytest.mark.parametrize(
    ("name", "format", "parts"),
    [
        (
            "jetson-orin",
            "fp8",
            [
                "jetson-orin@jetpack-6.1: expected a format that SM 8.7 with TensorRT 10.3.0 has",
                "(fp32, fp16, bf16, int8, int4-weights, int4)",
                "got fp8 (fp8 needs SM 8.9 or newer); choose one of the formats it has, for example fp16",
            ],
        ),
        ("jetson-orin", "nvfp4", ["fp4 needs Blackwell"]),
        ("rtx-4090", "int4", ["its INT4 is weight-only"]),
        ("rtx-2080-ti", "bf16", ["expected a format that SM 7.5 has (fp32, fp16, int8)", "TensorRT-RTX refuses bf16 on SM 7.5"]),
        ("jetson-xavier", "bf16", ["tensor cores multiply bf16 from SM 8.0 on"]),
        ("jetson-xavier", "int4-weights", ["SM 7.2"]),
        ("onnxruntime-cpu", "bf16", ["expected a format that onnxruntime-cpu has", "no bf16 MatMul"]),
        ("rtx-4090", "nvfp4", ["fp4 needs SM 12.0 or 12.1"]),
        ("cpu", "fp7", ["expected one of fp32, fp16", "got 'fp7'"]),
    ],
)
def test_impossible_formats_are_refused_with_the_reason(name: str, format: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        find(name).require(format)
    for part in parts:
        assert part in str(caught.value)


def test_a_format_can_be_too_new_for_the_jetpack() -> None:
    assert "TensorRT has int4-weights since 10.0, this one is 8.6.2" in find("jetson-orin@jetpack-6.0").supports("int4-weights").reason
    assert find("jetson-orin@jetpack-6.1").supports("int4-weights")


def test_plugins_are_for_those_that_have_their_arithmetic() -> None:
    assert find("jetson-orin@jetpack-6.1").plugins == ("lowrank_linear",)
    assert [find(name).plugins for name in ("jetson-orin@jetpack-6.0", "jetson-xavier", "rtx-4090")] == [()] * 3


def test_possible_formats_pass() -> None:
    find("jetson-orin").require("int8")
    find("jetson-thor").require("nvfp4")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("jetson-xavier", ["expected TensorRT 10.3 or newer", "TensorRT 8.5.2 has no strongly typed networks", "JetPack 6.1 or newer"]),
        ("jetson-orin@jetpack-6.0", ["got Jetson AGX Orin 64GB: TensorRT 8.6.2"]),
        (
            "h200",
            ["expected a GPU that TensorRT-RTX compiles for", "got H200 SXM: TensorRT-RTX has no SM 9.0", "use --target onnxruntime-cuda"],
        ),
    ],
)
def test_targets_that_cannot_be_built_say_why(name: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        find(name).require_buildable()
    for part in parts:
        assert part in str(caught.value)


def test_targets_that_can_be_built_pass() -> None:
    for name in ("cpu", "onnxruntime-cuda", "rtx-2060", "dgx-spark", "jetson-orin", "jetson-thor@jetpack-7.2.2"):
        find(name).require_buildable()


def _with(target: Target, **changes: object) -> Target:
    return dataclasses.replace(target, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"power_w": 60.0}, "power_w has a value but no source"),
        ({"l2_mib": None}, "a source is given for l2_mib, which has no value"),
        ({"rates": None}, "a GPU is described by"),
        ({"jetpack": None}, "build kits and JetPack belong together"),
        ({"tensorrt": (10, 13)}, "jetpack-6.1 has TensorRT"),
        ({"clock_ghz": 1.0}, "differ from those of power mode MAXN"),
        ({"memory_reserve_gib": 64.0}, "memory_reserve_gib expected within 0 to 64"),
        ({"default_precision": "int8"}, "default_precision expected one of"),
    ],
)
def test_inconsistent_descriptions_cannot_be_made(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _with(find("jetson-orin"), **changes)


def test_sources_cannot_be_changed_afterwards() -> None:
    with pytest.raises(TypeError):
        find("cpu").sources["onnx_opset"] = Source("x", "memory")  # type: ignore[index]


def test_rates_and_sources_check_themselves() -> None:
    with pytest.raises(ValueError, match="expected fp32 <= fp16"):
        Rates("wrong", fp32=512, fp16=256, fp16_fast=256)
    with pytest.raises(ValueError, match="got an empty string"):
        Source("", "read")
