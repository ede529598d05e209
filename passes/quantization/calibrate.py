"""Accumulators: what flows into the sites of a graph becomes statistics, in memory that is known in advance.

Two accumulators over different pictures merge into exactly what one over all of them holds, bit for bit:

- Sums are kept in fixed point: each update's sum is a multiple of 2^-50, and sums of multiples are exact.
- A histogram covers [-limit, limit) for a power of two. Values beyond double the limit and merge pairs of bins. A power of two only
  moves the exponent of a float, so a value falls into the same bin whether it came before or after the doubling.
- The sample of rows does not depend on their order (`reservoir.py`).

All steps are always collected: one static range needs their union, tables need them apart.
Notation: T steps, C channels, N tokens, R rows, B bins as in `statistics.py`; P pixels.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import fx

from dexport.errors import Failure
from dexport.passes.graph import Graph, value
from dexport.passes.quantization.attention_sites import attention_sites
from dexport.passes.quantization.reservoir import Origin, Reservoir, empty_reservoir
from dexport.passes.quantization.sites import Site, sites
from dexport.passes.quantization.statistics import BINS, SiteStatistics, histogram

MOST_TOKENS = 4096
MOST_ROWS = 512
ROW_BYTES = 2 << 20
"""Of the sample of rows of one site."""

_SMALLEST_LIMIT = 2.0**-24
_FRACTION_BITS = 50
_PIECE = 1 << 18  # values at a time: they stay in the cache, which makes the passes over them two to three times as fast


@dataclass(frozen=True)
class Watched:
    """A value that is accumulated, once for all sites that read it.

    Attributes:
        node: name of its node in the graph.
        sites: the sites that read it, in graph order.
        spatial: axes after the channels; 0 for linears, whose channels come last.
        channels: of the value itself: for grouped convolutions all of them.
        tokens: of one picture, where fixed and at most 4096; linears and attentions only.
        attention: it is an operand of attentions, [batch, heads, tokens, D], whose channels are those of all heads. Only extremes are
            kept: nobody asks for more, and histograms would make calibration half as slow again.
    """

    node: str
    sites: tuple[str, ...]
    spatial: int
    channels: int
    tokens: int | None
    steps: int
    attention: bool = False

    @property
    def rows(self) -> int:
        """Most rows that are sampled: 512, fewer where they would take more than 2 MiB."""
        return 0 if self.attention else max(1, min(MOST_ROWS, ROW_BYTES // (4 * self.channels)))

    @property
    def nbytes(self) -> int:
        """What its accumulator takes, whatever it sees."""
        more = 0 if self.attention else 8 * BINS + 2 * 16 * self.channels
        per_step = 8 + 4 + (4 + 4) * self.channels + 8 * (self.tokens or 0) + more
        return self.steps * per_step + self.rows * (8 + 8 + 4 * self.channels)


def watched(graph: Graph, steps: int) -> tuple[Watched, ...]:
    """What to accumulate for the sites and attentions of a graph that runs `steps` times per picture, at steps 0 to `steps` - 1."""
    nodes = {node.name: node for node in graph.module.graph.nodes}
    groups: dict[tuple[str, int], list[Site]] = {}
    for site in sites(graph):
        groups.setdefault((site.source, len(site.shape) - 2), []).append(site)
    found = []
    for (source, spatial), readers in groups.items():
        shape = tuple(value(nodes[source]).shape)
        names = tuple(site.name for site in readers)
        found.append(Watched(source, names, spatial, int(shape[-1 - spatial]), None if spatial else _tokens(shape), steps))
    return (*found, *_watched_operands(graph, nodes, steps))


def _watched_operands(graph: Graph, nodes: Mapping[str, fx.Node], steps: int) -> Iterator[Watched]:
    """The operands of attentions of several heads."""
    readers: dict[str, list[str]] = {}
    for site in attention_sites(graph):
        for name, node in zip(site.operand_names, site.operands):
            readers.setdefault(node, []).append(name)
    for node, names in readers.items():
        shape = tuple(value(nodes[node]).shape)
        if len(shape) == 4:
            tokens = _tokens((shape[0], shape[2], shape[3]))
            yield Watched(node, tuple(names), 0, int(shape[1] * shape[3]), tokens, steps, attention=True)


def _tokens(shape: tuple[int | torch.SymInt, ...]) -> int | None:
    """The number of tokens of a picture [batch, tokens..., channels], None where it is not fixed or too large."""
    inner = shape[1:-1]
    if not inner or not all(isinstance(size, int) for size in inner):
        return None
    tokens = math.prod(int(size) for size in inner)
    return tokens if tokens <= MOST_TOKENS else None


def calibration_bytes(graph: Graph, steps: int) -> int:
    """What the accumulators of a graph take."""
    return sum(entry.nbytes for entry in watched(graph, steps))


@dataclass
class Accumulator:
    """What was seen of one value so far.

    Attributes:
        count: rows seen, int64 [T].
        minimum, maximum: float32 [T, C]; infinite where nothing was seen.
        whole, fraction: sums of values and of squares, int64 [2, T, C] each: whole + fraction / 2^50.
        histogram, limit, token_minimum, token_maximum: as in `SiteStatistics`.
        reservoir: the sample of rows.
    """

    about: Watched
    count: torch.Tensor
    minimum: torch.Tensor
    maximum: torch.Tensor
    whole: torch.Tensor
    fraction: torch.Tensor
    histogram: torch.Tensor
    limit: torch.Tensor
    token_minimum: torch.Tensor
    token_maximum: torch.Tensor
    reservoir: Reservoir

    def update(self, origin: Origin, seen: torch.Tensor) -> None:
        """Adds a value.

        Args:
            origin: its step, and which batch of pictures and which call in it this is; no two updates may share one.
            seen: [batch, tokens..., C] or [rows, C] for linears, [batch, C, pixels...] for convolutions; any floating point, any device.

        Raises:
            Failure: it holds NaN or Inf.
        """
        x = self._arranged(seen)
        step, within = origin.step, 2 if self.about.spatial else 1
        pieces = _pieces(x if self.about.spatial else x.flatten(0, 1))
        found = _summary(pieces, tokens=self.about.tokens is not None, sums=not self.about.attention)
        limit = self._limit_for(found.low, found.high, step)
        rows = x.shape[0] * x.shape[within]
        self.count[step] += rows
        torch.minimum(self.minimum[step], found.low, out=self.minimum[step])
        torch.maximum(self.maximum[step], found.high, out=self.maximum[step])
        if found.row_low is not None and found.row_high is not None:
            by_token = (x.shape[0], x.shape[1])
            torch.minimum(self.token_minimum[step], found.row_low.view(by_token).amin(0), out=self.token_minimum[step])
            torch.maximum(self.token_maximum[step], found.row_high.view(by_token).amax(0), out=self.token_maximum[step])
        if found.sums is None:
            return
        _add(self.whole[:, step], self.fraction[:, step], *_split(found.sums))
        self._widen(step, limit)
        for piece in pieces:
            self.histogram[step] += histogram(piece, float(self.limit[step])).cpu()
        self.reservoir.offer(origin, rows, lambda chosen: _rows(x, chosen, within))

    def absorb(self, other: Accumulator) -> None:
        """Takes in what another accumulator of the same value saw of other pictures."""
        self.count += other.count
        for low, more in ((self.minimum, other.minimum), (self.token_minimum, other.token_minimum)):
            torch.minimum(low, more, out=low)
        for high, more in ((self.maximum, other.maximum), (self.token_maximum, other.token_maximum)):
            torch.maximum(high, more, out=high)
        _add(self.whole, self.fraction, other.whole, other.fraction)
        for step, limit in enumerate(other.limit.tolist()):
            self._widen(step, limit)
            self.histogram[step] += _merged_bins(other.histogram[step], round(math.log2(float(self.limit[step]) / limit)))
        self.reservoir.absorb(other.reservoir)

    def statistics(self) -> SiteStatistics | None:
        """What was seen, None if nothing was. Steps that saw nothing hold zeros."""
        if not int(self.count.sum()):
            return None
        seen = self.count > 0
        mean, square = ((self.whole + self.fraction.double() * 2.0**-_FRACTION_BITS) / self.count.clamp(min=1)[:, None]).float()
        rows, row_steps = self.reservoir.content()
        tokens = self.about.tokens is not None
        return SiteStatistics(
            count=self.count.clone(),
            minimum=torch.where(seen[:, None], self.minimum, 0.0),
            maximum=torch.where(seen[:, None], self.maximum, 0.0),
            mean=mean,
            square=square,
            histogram=self.histogram.clone(),
            limit=self.limit.clone(),
            token_minimum=torch.where(seen[:, None], self.token_minimum, 0.0) if tokens else None,
            token_maximum=torch.where(seen[:, None], self.token_maximum, 0.0) if tokens else None,
            rows=rows,
            row_steps=row_steps,
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its whole state: the tensors themselves, to be written to a file or copied into."""
        own = {name: getattr(self, name) for name in _STATE}
        return own | {name: getattr(self.reservoir, name) for name in ("keys", "rows", "steps")}

    def _arranged(self, seen: torch.Tensor) -> torch.Tensor:
        """float32 [batch, N, C] or [batch, C, P]."""
        x = seen.detach().float()
        if self.about.attention:
            return x.transpose(1, 2).flatten(2)
        if not self.about.spatial:
            return x.reshape(x.shape[0] if x.dim() > 2 else 1, -1, x.shape[-1])
        pixels = x.flatten(-self.about.spatial)
        return pixels if pixels.dim() == 3 else pixels[None]

    def _limit_for(self, low: torch.Tensor, high: torch.Tensor, step: int) -> float:
        """The least power of two above all magnitudes."""
        largest = float(torch.maximum(high, -low).max())
        if not largest < 2.0**127:  # NaN compares false
            where = f"{self.about.sites[0]}, step {step}"
            raise Failure(where, expected="finite activations", got="NaN or Inf", fix="check the weights of the layers before it")
        return max(_SMALLEST_LIMIT, 2.0 ** math.frexp(largest)[1])

    def _widen(self, step: int, limit: float) -> None:
        doublings = round(math.log2(limit / float(self.limit[step])))
        if doublings > 0:
            if self.histogram[step].any():
                self.histogram[step] = _merged_bins(self.histogram[step], doublings)
            self.limit[step] = limit


_STATE = ("count", "minimum", "maximum", "whole", "fraction", "histogram", "limit", "token_minimum", "token_maximum")


def empty_accumulator(about: Watched, component: str, seed: int) -> Accumulator:
    """An accumulator that has seen nothing.

    Args:
        component: name of the graph.
        seed: of the sample of rows; accumulators that are to be merged need the same.
    """
    steps, channels, tokens = about.steps, about.channels, about.tokens or 0
    bins, sums = (0, 0) if about.attention else (BINS, channels)
    own_seed = (seed << 32 ^ zlib.crc32(f"{component}/{about.node}/{about.spatial}".encode())) % 2**64
    return Accumulator(
        about=about,
        count=torch.zeros(steps, dtype=torch.int64),
        minimum=torch.full((steps, channels), math.inf),
        maximum=torch.full((steps, channels), -math.inf),
        whole=torch.zeros(2, steps, sums, dtype=torch.int64),
        fraction=torch.zeros(2, steps, sums, dtype=torch.int64),
        histogram=torch.zeros(steps, bins, dtype=torch.int64),
        limit=torch.full((steps,), _SMALLEST_LIMIT),
        token_minimum=torch.full((steps, tokens), math.inf),
        token_maximum=torch.full((steps, tokens), -math.inf),
        reservoir=empty_reservoir(own_seed, about.rows, channels),
    )


def site_statistics(accumulators: Iterable[Accumulator]) -> dict[str, SiteStatistics]:
    """Site name -> what was seen; sites that read one value share one object."""
    pairs = ((accumulator.about.sites, accumulator.statistics()) for accumulator in accumulators)
    return {site: seen for names, seen in pairs if seen is not None for site in names}


def _rows(x: torch.Tensor, chosen: torch.Tensor, within: int) -> torch.Tensor:
    """Rows of the value by number, float32 [n, C]."""
    number = chosen.to(x.device)
    batch, inner = number // x.shape[within], number % x.shape[within]
    return (x[batch, inner] if within == 1 else x[batch, :, inner]).cpu()


class _Summary(NamedTuple):
    """Extremes of every channel [C] and, for linears, of every row [R]; sums of values and of squares, float64 [2, C]."""

    low: torch.Tensor
    high: torch.Tensor
    row_low: torch.Tensor | None
    row_high: torch.Tensor | None
    sums: torch.Tensor | None


def _pieces(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rows [R, C], or pictures [batch, C, P] for convolutions, in pieces that fit into the processor's cache."""
    return torch.split(x, max(1, _PIECE // x[0].numel()))


def _summary(pieces: Sequence[torch.Tensor], *, tokens: bool, sums: bool) -> _Summary:
    """All that takes one reading: every piece is read from memory once and then from the cache."""
    summed = (0,) if pieces[0].dim() == 2 else (0, 2)
    lows, highs = [], []
    row_lows, row_highs, totals = [], [], []
    for piece in pieces:
        lows.append(piece.amin(summed))
        highs.append(piece.amax(summed))
        if tokens:
            row_lows.append(piece.amin(1))
            row_highs.append(piece.amax(1))
        if sums:
            totals.append(torch.stack([piece.sum(summed), (piece * piece).sum(summed)]))
    return _Summary(
        low=torch.stack(lows).amin(0).cpu(),
        high=torch.stack(highs).amax(0).cpu(),
        row_low=torch.cat(row_lows).cpu() if tokens else None,
        row_high=torch.cat(row_highs).cpu() if tokens else None,
        sums=torch.stack(totals).sum(0, dtype=torch.float64).cpu() if sums else None,
    )


def _merged_bins(histogram: torch.Tensor, doublings: int) -> torch.Tensor:
    """The histogram with its limit doubled some times."""
    for _ in range(min(doublings, BINS.bit_length())):  # by then everything is in the two bins at the centre, and stays there
        widened = torch.zeros_like(histogram)
        widened[BINS // 4 : 3 * BINS // 4] = histogram.view(-1, 2).sum(1)
        histogram = widened
    return histogram


def _split(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 in fixed point: whole numbers, and fractions in units of 2^-50, int64."""
    whole = value.floor()
    return whole.to(torch.int64), ((value - whole) * 2.0**_FRACTION_BITS).to(torch.int64)


def _add(whole: torch.Tensor, fraction: torch.Tensor, more_whole: torch.Tensor, more_fraction: torch.Tensor) -> None:
    """Adds in place and carries."""
    fraction += more_fraction
    whole += more_whole + (fraction >> _FRACTION_BITS)
    fraction &= 2**_FRACTION_BITS - 1
