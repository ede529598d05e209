"""Build options read the same from flags, files and Python, and say what is wrong with them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dexport.errors import UserError
from dexport.exporter.options import BuildOptions, options_from, parse_size

_REQUIRED = {"model": "m", "target": "cpu"}


@given(
    sizes=st.lists(st.tuples(st.integers(1, 4096), st.integers(1, 4096)), max_size=3),
    steps=st.lists(st.integers(1, 1000), max_size=3),
    guidance=st.none() | st.floats(0, 30),
    batching=st.booleans(),
    loras=st.lists(st.text("ab/.:", min_size=1), max_size=2),
)
def test_a_saved_configuration_reads_back_equal(
    sizes: list[tuple[int, int]], steps: list[int], guidance: float | None, batching: bool, loras: list[str]
) -> None:
    options = BuildOptions(
        **_REQUIRED, sizes=tuple(sizes), steps=tuple(steps), guidance=guidance, guidance_batching=batching, loras=tuple(loras)
    )
    assert options_from(json.loads(json.dumps(options.to_config())), "saved") == options


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("steps", "10,20", (10, 20)),
        ("steps", 10, (10,)),
        ("sizes", "16x24,32x32", ((16, 24), (32, 32))),
        ("sizes", ["16x24"], ((16, 24),)),
        ("guidance", "7", 7.0),
        ("guidance_interval", "0.2,1", (0.2, 1.0)),
        ("guidance_batching", "off", False),
        ("guidance_batching", True, True),
        ("frames", "17", 17),
        ("precision", None, None),
    ],
)
def test_values_as_users_write_them(key: str, value: object, read: object) -> None:
    assert getattr(options_from({**_REQUIRED, key: value}, "test"), key) == read


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": "cpu"}, r"test: expected the option model, got none; give it"),
        ({**_REQUIRED, "guidnce": 1}, r"test: expected one of the options guidance.*, got 'guidnce'; correct the key"),
        ({**_REQUIRED, "batch": "two"}, r"test: batch: expected a value of its kind .*, got 'two'; correct it"),
        ({**_REQUIRED, "guidance_batching": "maybe"}, r"test: guidance_batching: .*got 'maybe'"),
        ({**_REQUIRED, "guidance_interval": [0.5]}, r"test: guidance_interval: "),
        (
            {**_REQUIRED, "guidance_interval": [0.8, 0.2]},
            r"expected two fractions with 0 <= first <= last <= 1, got 0.8, 0.2; give 0,1 for all",
        ),
        ({**_REQUIRED, "golden": "some"}, r"golden: expected auto or none, got some; choose one of them"),
        ({**_REQUIRED, "batch": 0}, r"batch: expected at least 1, got 0; give the most pictures of one run"),
        ({**_REQUIRED, "steps": [4, 0]}, r"steps: expected positive numbers, got \[4, 0\]; give for example 20"),
    ],
)
def test_wrong_values_say_what_is_right(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        options_from(values, "test")


@pytest.mark.parametrize("text", ["", "512", "512x", "0x64", "64x0", "-1x4", "512X512", "5 x 5"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=r"size: expected HEIGHTxWIDTH in pixels, such as 512x768, got .*; write it that way"):
        parse_size(text)


def test_height_comes_first() -> None:
    assert parse_size(" 512x768 ") == (512, 768)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "int8"}, "--recipe: expected no --modelopt, whose checkpoint decides how the denoiser is quantized, got both"),
        ({"average_bits": 4.0}, "--average-bits: expected no --modelopt"),
        ({"budget_bytes": 1000}, "--budget-bytes: expected no --modelopt"),
        ({"calibration": "prompts.txt"}, "--calibration: expected no --modelopt"),
        ({"statistics": "file"}, "--statistics: expected no --modelopt"),
        ({"loras": ("file",)}, "--lora: expected no --modelopt, .*; merge it before you quantize with ModelOpt"),
        ({"parts": {"denoiser": "int8"}}, "--component denoiser=int8: expected a part that the checkpoint leaves alone"),
        ({"parts": {"prelude": "int8"}}, "--component prelude=int8: expected a part that the checkpoint leaves alone"),
    ],
)
def test_what_contradicts_a_checkpoint_of_modelopt_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BuildOptions(**_REQUIRED, modelopt="m.pth", **options)


def test_what_goes_with_a_checkpoint_of_modelopt() -> None:
    BuildOptions(**_REQUIRED, modelopt="m.pth", skip=("x",), allow_degrade=True, min_psnr=30.0, parts={"prelude": "keep"})
    BuildOptions(**_REQUIRED, modelopt="m.pth", parts={"text_encoder": "int8"}, calibration="prompts.txt")
