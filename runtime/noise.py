"""Standard normal noise without PyTorch, the same bits in every implementation.

`TorchNoise` follows `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)`, so that a
seed gives the picture that it gives in diffusers. `PhiloxNoise` is counter based: any element can be computed alone. It has
nothing to do with the stream that PyTorch draws on CUDA. `PicturesNoise` draws every picture of a batch from its own stream;
`GivenNoise` hands out noise that was drawn elsewhere.

All of them draw float32. PyTorch's float16 and bfloat16 draws are its float32 draws rounded (measured with torch 2.13), so pipelines
of those types see this stream too; its float64 draws follow other uniform numbers and are not offered.

How bits are made equal everywhere. Uniform numbers are exact multiples of a power of two. Everything after them is float64
arithmetic of IEEE additions, multiplications, divisions and square roots, each rounded on its own (no fused multiply-add,
no library logarithm or cosine), and at the end one rounding to float32:

- logarithm: x = m 2^e with m in [sqrt(1/2), sqrt(2)), s = (m - 1) / (m + 1), and with z = s s, by Horner from the highest term,
  ln x = e LN2 + (s + s)(1 + z (1/3 + z (1/5 + ... + z (1/23)))). The series is cut where the next term is below 2^-58.
- sine and cosine of t in [0, 2 pi]: q = floor(t (2/pi) + 1/2), r = (t - q HALF_PI_HIGH) - q HALF_PI_LOW, |r| <= pi/4, then the
  Taylor series by Horner in z = r r up to r^17 (sine) and r^16 (cosine); q mod 4 swaps and negates them.

The coefficients are correctly rounded quotients (1/3 is `1.0 / 3.0`), so a port needs no table of digits.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dexport.errors import UserError

Array = npt.NDArray[np.float64]
Normal = npt.NDArray[np.float32]

_LN2 = float.fromhex("0x1.62e42fefa39efp-1")
_SQRT_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")
_TWO_OVER_PI = float.fromhex("0x1.45f306dc9c883p-1")
# pi/2 in two parts; the low 20 bits of the first are zero, so that its product with a quadrant 0..4 is exact.
_HALF_PI_HIGH = float.fromhex("0x1.921fb54400000p+0")
_HALF_PI_LOW = float.fromhex("0x1.0b4611a626331p-34")
_TWO_PI = float.fromhex("0x1.921fb54442d18p+2")
_TWO_PI_FLOAT32 = float.fromhex("0x1.921fb60000000p+2")

_LOG_SERIES = tuple(1.0 / (2 * k + 1) for k in range(12))
_SIN_SERIES = tuple((-1.0) ** k / math.factorial(2 * k + 1) for k in range(9))
_COS_SERIES = tuple((-1.0) ** k / math.factorial(2 * k) for k in range(9))

_BLOCK = 16
"""PyTorch makes normal numbers in blocks of 16: eight radii, then eight angles."""


class Noise(Protocol):
    """A stream of standard normal numbers; each call continues where the last one stopped."""

    def normal(self, shape: Sequence[int]) -> Normal:
        """Draws float32 numbers of `shape`."""
        ...


def _horner(z: Array, series: tuple[float, ...]) -> Array:
    total = np.full_like(z, series[-1])
    for coefficient in reversed(series[:-1]):
        total *= z
        total += coefficient
    return total


def natural_log(x: Array) -> Array:
    """Natural logarithm of positive normal float64 numbers, within 2 units in the last place (see the module)."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < _SQRT_HALF
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    exponent = np.where(low, exponent - 1, exponent).astype(np.float64)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return exponent * _LN2 + (s + s) * _horner(s * s, _LOG_SERIES)


def sine_cosine(angle: Array) -> tuple[Array, Array]:
    """Sine and cosine of float64 angles in [0, 2 pi], within 2^-52 absolute (see the module)."""
    quadrant = np.floor(angle * _TWO_OVER_PI + 0.5)
    r = (angle - quadrant * _HALF_PI_HIGH) - quadrant * _HALF_PI_LOW
    z = r * r
    sine, cosine = r * _horner(z, _SIN_SERIES), _horner(z, _COS_SERIES)
    turn = quadrant.astype(np.int64) & 3
    swap = (turn & 1) == 1
    first, second = np.where(swap, cosine, sine), np.where(swap, sine, cosine)
    return np.where(turn >= 2, -first, first), np.where((turn == 1) | (turn == 2), -second, second)


def _box_muller(radius_uniform: Array, angle: Array) -> tuple[Array, Array]:
    """Two normal numbers from a uniform number in (0, 1] and an angle (Box and Muller, 1958): cosine first."""
    radius = np.sqrt(-2.0 * natural_log(radius_uniform))
    sine, cosine = sine_cosine(angle)
    return radius * cosine, radius * sine


def _mersenne_state(seed: int) -> npt.NDArray[np.uint32]:
    """The 624 words that `init_genrand` of MT19937 (Matsumoto and Nishimura, 2002 version) makes of a 32-bit seed."""
    words = [seed & 0xFFFFFFFF]
    for index in range(1, 624):
        words.append((1812433253 * (words[-1] ^ (words[-1] >> 30)) + index) & 0xFFFFFFFF)
    return np.array(words, np.uint32)


class TorchNoise:
    """The stream of a PyTorch CPU generator's float32 `randn`, equal within 1e-6 (torch rounds log, cos and sin otherwise).

    As in PyTorch only the low 32 bits of the seed count. Draws of fewer than 16 numbers take PyTorch's scalar path: float64,
    two words per uniform number, the second number of a pair kept for the next small draw. Bigger draws take one word per
    uniform number and blocks of 16; when 16 does not divide the size, the last 16 numbers are drawn again.

    Args:
        seed: any integer that `torch.Generator.manual_seed` takes.
    """

    def __init__(self, seed: int) -> None:
        self._words = np.random.MT19937()
        self._words.state = {"bit_generator": "MT19937", "state": {"key": _mersenne_state(seed), "pos": 624}}
        self._kept: float | None = None

    def normal(self, shape: Sequence[int]) -> Normal:
        """Draws float32 standard normal numbers of `shape`."""
        count = math.prod(shape)
        values = self._blocks(count) if count >= _BLOCK else self._few(count)
        return values.astype(np.float32).reshape(shape)

    def _blocks(self, count: int) -> Array:
        whole = count - count % _BLOCK
        uniform = self._uniform24(count)
        values = np.empty(count, np.float64)
        values[:whole] = _normal_blocks(uniform[:whole])
        if whole != count:
            values[-_BLOCK:] = _normal_blocks(self._uniform24(_BLOCK))
        return values

    def _few(self, count: int) -> Array:
        values = np.empty(count, np.float64)
        for index in range(count):
            if self._kept is not None:
                values[index], self._kept = self._kept, None
                continue
            angle, radius = self._uniform53(2)
            first, second = _box_muller(np.array([1.0 - radius]), np.array([_TWO_PI * angle]))
            values[index], self._kept = first[0], float(second[0])
        return values

    def _uniform24(self, count: int) -> Array:
        words: npt.NDArray[np.uint64] = self._words.random_raw(count)
        uniform: Array = (words & np.uint64(0xFFFFFF)).astype(np.float64) * 2.0**-24
        return uniform

    def _uniform53(self, count: int) -> Array:
        words: npt.NDArray[np.uint64] = self._words.random_raw(2 * count).reshape(count, 2)
        bits = (words[:, 0] << np.uint64(32) | words[:, 1]) & np.uint64((1 << 53) - 1)
        uniform: Array = bits.astype(np.float64) * 2.0**-53
        return uniform


def _normal_blocks(uniform: Array) -> Array:
    """Normal numbers from uniform ones [16 n]; the angle is rounded to float32 as in PyTorch, or large values would be off by 2e-6."""
    pairs = uniform.reshape(-1, 2, _BLOCK // 2)
    angle = (_TWO_PI_FLOAT32 * pairs[:, 1]).astype(np.float32).astype(np.float64)
    return np.stack(_box_muller(1.0 - pairs[:, 0], angle), axis=1).reshape(-1)


class PhiloxNoise:
    """Counter-based noise: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and Box-Muller.

    The key is the seed (low word, high word). Draw d (counted from 0) makes its elements 4 i .. 4 i + 3 of the counter
    (i low, i high, d low, d high): with words w, u = (w + 1) 2^-32 is the radius' uniform number for w0 and w2 and
    2 pi w 2^-32 the angle for w1 and w3; each pair gives cosine, then sine.

    Args:
        seed: integer, taken modulo 2^64.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._draw = 0

    def normal(self, shape: Sequence[int]) -> Normal:
        """Draws float32 standard normal numbers of `shape`."""
        count = math.prod(shape)
        index = np.arange((count + 3) // 4, dtype=np.uint64)
        draw = np.full_like(index, self._draw)
        self._draw += 1
        mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
        words = philox((index & mask, index >> shift, draw & mask, draw >> shift), self._seed)
        floats = [word.astype(np.float64) for word in words]
        pairs = [_box_muller((radius + 1.0) * 2.0**-32, _TWO_PI * (angle * 2.0**-32)) for radius, angle in (floats[:2], floats[2:])]
        values = np.stack([*pairs[0], *pairs[1]], axis=1).reshape(-1)
        return values[:count].astype(np.float32).reshape(shape)


Words = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint64]]


def philox(counter: Words, seed: int) -> Words:
    """Ten rounds of Philox4x32 over 32-bit words held in uint64 arrays; the key is the seed's low and high word."""
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    a, b, c, d = counter
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = second >> shift ^ b ^ np.uint64(low), second & mask, first >> shift ^ d ^ np.uint64(high), first & mask
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return a, b, c, d


class PicturesNoise:
    """One stream per picture, as diffusers draws when it is given a list of generators: row k of every draw is from stream k.

    Args:
        streams: one per row of axis 0.
    """

    def __init__(self, streams: Sequence[Noise]) -> None:
        self._streams = tuple(streams)

    def normal(self, shape: Sequence[int]) -> Normal:
        """Draws float32 numbers of `shape`; each stream draws shape [1, ...].

        Raises:
            UserError: axis 0 is not a row per stream.
        """
        if not shape or shape[0] != len(self._streams):
            expected = f"one row of noise per stream, {len(self._streams)}"
            raise UserError("noise", expected=expected, got=f"shape {list(shape)}", fix="give one seed per picture")
        return np.concatenate([stream.normal((1, *shape[1:])) for stream in self._streams])


class GivenNoise:
    """Noise that was drawn elsewhere, handed out draw by draw: how a run repeats another one exactly.

    Args:
        draws: the arrays, in the order in which the program draws them.
    """

    def __init__(self, draws: Sequence[npt.NDArray[np.generic]]) -> None:
        self._draws = list(draws)
        self._next = 0

    def normal(self, shape: Sequence[int]) -> Normal:
        """Hands out the next array as float32.

        Raises:
            UserError: no array is left, or the next one has another shape.
        """
        if self._next == len(self._draws):
            expected = f"noise for draw {self._next}"
            raise UserError("noise", expected=expected, got=f"{len(self._draws)} draws", fix="give as many draws as the program makes")
        draw = self._draws[self._next]
        if draw.shape != tuple(shape):
            expected = f"shape {list(shape)} for draw {self._next}"
            raise UserError("noise", expected=expected, got=f"shape {list(draw.shape)}", fix="give the draws in the program's order")
        self._next += 1
        return draw.astype(np.float32)
