"""Noise: equal to PyTorch's generator within rounding, and to itself bit for bit."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.errors import UserError
from dexport.runtime.noise import GivenNoise, Noise, PhiloxNoise, PicturesNoise, TorchNoise, natural_log, philox, sine_cosine

SEEDS = st.integers(-(2**63), 2**64 - 1)
SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, shapes=st.lists(SHAPES, min_size=1, max_size=5))
def test_repeated_draws_follow_torch(seed: int, shapes: list[tuple[int, ...]]) -> None:
    generator, noise = torch.Generator("cpu").manual_seed(seed), TorchNoise(seed)
    for shape in shapes:
        expected = torch.randn(shape, generator=generator, dtype=torch.float32).numpy()
        drawn = noise.normal(shape)
        assert drawn.dtype == np.float32
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 31, 32, 33, 1000, 2**18 + 5])
def test_every_kind_of_size_follows_torch(count: int) -> None:
    expected = torch.randn(count, generator=torch.Generator("cpu").manual_seed(11)).numpy()
    np.testing.assert_allclose(TorchNoise(11).normal((count,)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [9, 4096])
def test_half_precision_draws_are_the_rounded_ones(dtype: torch.dtype, count: int) -> None:
    half = torch.randn(count, generator=torch.Generator("cpu").manual_seed(3), dtype=dtype)
    ours = torch.from_numpy(TorchNoise(3).normal((count,))).to(dtype)
    assert (half == ours).float().mean() > 0.99
    torch.testing.assert_close(half, ours, rtol=float(torch.finfo(dtype).eps), atol=1e-6)


def test_a_batch_and_a_list_of_generators_follow_diffusers() -> None:
    from diffusers.utils.torch_utils import randn_tensor

    shape = (3, 4, 5, 5)
    one = randn_tensor(shape, generator=torch.Generator("cpu").manual_seed(1), dtype=torch.float32).numpy()
    np.testing.assert_allclose(TorchNoise(1).normal(shape), one, rtol=0, atol=1e-6)
    each = randn_tensor(shape, generator=[torch.Generator("cpu").manual_seed(k) for k in range(3)], dtype=torch.float32).numpy()
    np.testing.assert_allclose(PicturesNoise([TorchNoise(k) for k in range(3)]).normal(shape), each, rtol=0, atol=1e-6)


def test_a_stream_per_picture_needs_a_row_per_stream() -> None:
    with pytest.raises(UserError, match=r"noise: expected one row of noise per stream, 2, got shape \[3, 4\]; give one seed per picture"):
        PicturesNoise([TorchNoise(0), TorchNoise(1)]).normal((3, 4))


def test_given_noise_is_handed_out_in_order() -> None:
    noise = GivenNoise([np.ones((2, 3)), np.zeros((4,), np.float16)])
    assert np.array_equal(noise.normal((2, 3)), np.ones((2, 3), np.float32))
    with pytest.raises(UserError, match=r"expected shape \[3\] for draw 1, got shape \[4\]; give the draws in the program's order"):
        noise.normal((3,))
    assert noise.normal((4,)).dtype == np.float32
    with pytest.raises(UserError, match="expected noise for draw 2, got 2 draws; give as many draws as the program makes"):
        noise.normal((4,))


def test_logarithm_sine_and_cosine_are_within_the_last_places() -> None:
    uniform = np.concatenate([1.0 - np.arange(0, 2**24, 997) * 2.0**-24, 2.0 ** -np.arange(1.0, 54.0)])
    exact = np.log(uniform.astype(np.longdouble))
    assert np.all(np.abs(natural_log(uniform) - exact) <= 2 * np.spacing(np.abs(exact).astype(np.float64)))
    angle = np.linspace(0.0, 2 * np.pi, 100_001)
    sine, cosine = sine_cosine(angle)
    assert np.abs(sine - np.sin(angle.astype(np.longdouble))).max() < 2.0**-52
    assert np.abs(cosine - np.cos(angle.astype(np.longdouble))).max() < 2.0**-52


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0_A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter: tuple[int, ...], key: int, expected: tuple[int, ...]) -> None:
    a, b, c, d = (np.array([word], np.uint64) for word in counter)
    assert tuple(int(word[0]) for word in philox((a, b, c, d), key)) == expected


def test_philox_draws_are_normal_and_do_not_depend_on_the_size() -> None:
    drawn = PhiloxNoise(2**40 + 3).normal((200_000,))
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.std() - 1) < 0.01
    assert np.array_equal(PhiloxNoise(2**40 + 3).normal((13,)), drawn[:13])
    noise = PhiloxNoise(2**40 + 3)
    noise.normal((1,))
    assert not np.array_equal(noise.normal((13,)), drawn[:13])


@pytest.mark.parametrize(
    ("noise", "digest"),
    [
        (TorchNoise(2026), "afb2498f9365bf45876d0f504d7f284e233f2d06c3ced87881db87379518b04a"),
        (PhiloxNoise(2026), "d1fccc07b35348de604ba85f7f1b520fb4281d6b43b3c0a5524892b381d2d5e1"),
    ],
    ids=["torch", "philox"],
)
def test_bits_are_golden(noise: Noise, digest: str) -> None:
    """A port to another language must reproduce these digests: little-endian float32 of draws of 7, 16, 5 and 4099 numbers."""
    drawn = b"".join(noise.normal((count,)).astype("<f4").tobytes() for count in (7, 16, 5, 4099))
    assert hashlib.sha256(drawn).hexdigest() == digest
