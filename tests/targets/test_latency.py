"""The roofline: by hand, against published measurements, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

import dexport.targets.rates
from dexport.errors import UserError
from dexport.targets.catalogue import all_targets, find
from dexport.targets.latency import BANDWIDTH, SUSTAINED, Work, attention_operations, estimable, milliseconds, sustained_tops, total
from dexport.targets.rates import Rates

FACTOR = 1.25


def linear(tokens: int, inputs: int, outputs: int, format: str = "fp16", weight_bits: float = 16, input_bits: float = 16) -> Work:
    moved = inputs * outputs * weight_bits / 8 + tokens * inputs * input_bits / 8 + tokens * outputs * 2
    return Work("linear", "product", 2.0 * tokens * inputs * outputs, moved, format)


def test_one_linear_by_hand() -> None:
    """RTX 4090: 128 SMs x 2.52 GHz x 512 operations = 165 TFLOPS of fp16, of which linears keep 0.84; 1008 GB/s."""
    target = find("rtx-4090")
    large = milliseconds(linear(4096, 3072, 3072), target)
    assert large == pytest.approx(2 * 4096 * 3072 * 3072 / (128 * 2.52e9 * 512 * 0.84) * 1e3)
    assert large == pytest.approx(0.557, abs=0.001)
    one = milliseconds(linear(1, 3072, 3072), target)  # a vector waits for the weight
    assert one == pytest.approx((3072 * 3072 * 2 + 4 * 3072) / (1008e9 * BANDWIDTH) * 1e3)
    assert milliseconds(Work("add", "traffic", 0, 1e9), target) == pytest.approx(1e9 / (1008e9 * BANDWIDTH) * 1e3)


def test_int4_is_multiplied_as_int8_where_the_hardware_does_not_have_it() -> None:
    orin, thor = find("jetson-orin"), find("jetson-thor")
    assert orin.rates is not None and thor.rates is not None and not thor.rates.int4
    faster = orin.rates.int4 * SUSTAINED[orin.rates.name].four / (orin.rates.int8 * SUSTAINED[orin.rates.name].eight)
    assert sustained_tops(orin, "int4", "product") == pytest.approx(sustained_tops(orin, "int8", "product") * faster) and faster > 1.5
    assert sustained_tops(thor, "int4", "product") == sustained_tops(thor, "int8", "product") > 0


@pytest.mark.parametrize("tokens", [1, 77, 4096])
@pytest.mark.parametrize("device", ["rtx-5090", "jetson-thor", "dgx-spark"])
def test_fewer_bits_take_no_longer(device: str, tokens: int) -> None:
    target = find(device)
    forms = [("fp32", 32, 32), ("bf16", 16, 16), ("int8", 8, 8), ("nvfp4", 4.5, 4.5)]
    times = [milliseconds(linear(tokens, 2048, 2048, *form), target) for form in forms]
    assert times == sorted(times, reverse=True) and times[0] > times[-1]
    assert milliseconds(linear(1, 2048, 2048, "int4-weights", 4.25), target) < milliseconds(linear(1, 2048, 2048), target)


def test_every_class_of_gpu_has_its_fractions() -> None:
    classes = {r.name for r in vars(dexport.targets.rates).values() if isinstance(r, Rates)}
    assert classes == set(SUSTAINED)
    assert all(0 < f <= 1 for s in SUSTAINED.values() for f in (s.half, s.eight, s.four, s.attention))
    assert all(estimable(target).reason for target in all_targets())


def flux(format: str, rank: int = 0, weight_bits: float = 16) -> list[Work]:
    """FLUX.1-dev at 1024x1024: 57 blocks on 4608 tokens of 3072 numbers, 12 d^2 multiplications per token and block."""
    return transformer(57, 24, 128, 4608, format, rank, weight_bits)


def video(format: str, weight_bits: float = 16) -> list[Work]:
    """CogVideoX-5B, 49 frames of 720x480, with guidance."""
    return 2 * transformer(42, 48, 64, 17776, format, 0, weight_bits)


def transformer(blocks: int, heads: int, head: int, tokens: int, format: str, rank: int, weight_bits: float) -> list[Work]:
    width = heads * head
    linears = [linear(tokens, width, width, format, weight_bits, weight_bits)] * 12
    branch = [replace(linear(tokens, *sizes), bytes=0.0) for sizes in ((width, rank), (rank, width))] * 12 if rank else []  # fused by hand
    attention = Work("attention", "attention", attention_operations(tokens, tokens, heads, head), 8.0 * tokens * width, "bf16")
    passes = Work("norms and the like", "traffic", 0, 16.0 * tokens * width * 2)
    return [*linears, *branch, attention, passes] * blocks


@pytest.mark.parametrize(
    ("device", "works", "measured"),
    [
        ("rtx-4090", flux("bf16"), 657),
        ("rtx-5090", flux("bf16"), 484),
        ("rtx-5090", flux("nvfp4", 32, 4.5), 162),
        ("rtx-4090", flux("fp8", weight_bits=8), 285),
        ("rtx-6000-ada", flux("fp8", weight_bits=8), 357),
        ("h100", flux("bf16"), 150),
        ("a100", video("bf16"), 4240),
        ("a100", video("int8", weight_bits=8), 3546),
    ],
)
def test_published_measurements(device: str, works: list[Work], measured: float) -> None:
    estimate = total(works, find(device))
    print(device, round(estimate), measured, round(estimate / measured, 2))
    assert measured / FACTOR <= estimate <= measured * FACTOR


def test_small_heads_are_filled_up_and_slower() -> None:
    """A head of 128 has 4 operations per query, key and number; one of 72 counts as 96."""
    assert attention_operations(10, 20, 2, 128) == 4 * 10 * 20 * 2 * 128
    assert attention_operations(10, 20, 2, 72) == pytest.approx(4 * 10 * 20 * 2 * 96 / 0.85)
    assert attention_operations(1, 1, 1, 64) == pytest.approx(attention_operations(1, 1, 1, 128) / 2 / 0.85)


def test_a_processor_has_no_estimate() -> None:
    with pytest.raises(UserError, match=r"^latency: expected a device whose speed is known, got cpu: its speed depends on the machine"):
        milliseconds(linear(1, 1, 1), find("cpu"))


def test_a_format_that_the_hardware_lacks() -> None:
    with pytest.raises(UserError, match="rtx-3090: expected a format that its hardware multiplies, got fp8"):
        milliseconds(linear(1, 8, 8, "fp8"), find("rtx-3090"))
