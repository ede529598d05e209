"""The bit map as a picture: blocks of a network side by side, the layers inside a block below each other, colour for bits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dexport.exporter.report.data import SiteBits, average_bits

_PLACE = re.compile(r"(?P<stem>.+?)\.(?P<block>\d+)\.(?P<layer>.+)")
_KEPT_BITS = 16
_COLOURED_BITS = 8
_HATCHES = 3  # looks that sites of the same bits can have


@dataclass(frozen=True)
class Look:
    """A colour (`bits`: 2 to 8, or 16 for everything above) and a hatch (0 for none) that stand for one treatment."""

    bits: int
    hatch: int


@dataclass(frozen=True)
class LegendEntry:
    """What a look means, and how much of the component it covers (0 to 1)."""

    look: Look
    label: str
    sites: int
    share: float


@dataclass(frozen=True)
class Cell:
    """One site."""

    site: str
    bits: SiteBits
    look: Look


@dataclass(frozen=True)
class Table:
    """Blocks of one kind: `rows` is layer -> one cell per block, None where a block has no such layer."""

    stem: str
    blocks: tuple[int, ...]
    rows: Mapping[str, tuple[Cell | None, ...]]


@dataclass(frozen=True)
class BitMap:
    """One component; `others` are the sites outside any block."""

    component: str
    average: float
    parameters: int
    legend: tuple[LegendEntry, ...]
    tables: tuple[Table, ...]
    others: tuple[Cell, ...]


def bit_map(component: str, sites: Mapping[str, SiteBits]) -> BitMap:
    """Lays out the sites of a component, at least one."""
    looks = _looks(sites)
    cells = {name: Cell(name, bits, looks[bits.label]) for name, bits in sites.items()}
    grouped: dict[str, dict[tuple[str, int], Cell]] = {}
    others = []
    for name, cell in cells.items():
        match = _PLACE.fullmatch(name)
        if match is None:
            others.append(cell)
        else:
            grouped.setdefault(match["stem"], {})[match["layer"], int(match["block"])] = cell
    total = sum(bits.parameters for bits in sites.values())
    tables = tuple(_table(stem, found) for stem, found in grouped.items())
    return BitMap(component, average_bits(sites), total, _legend(sites, looks, total), tables, tuple(others))


def look_bits(weight_bits: float) -> int:
    """The colour of a number of bits: scales that add a fraction do not change it."""
    whole = max(2, int(weight_bits + 0.05))
    return whole if whole <= _COLOURED_BITS else _KEPT_BITS


def _looks(sites: Mapping[str, SiteBits]) -> dict[str, Look]:
    """A look per treatment: the colour from its bits, hatches where several have the same."""
    looks: dict[str, Look] = {}
    used: dict[int, int] = {}
    for bits in sites.values():
        if bits.label not in looks:
            colour = look_bits(bits.weight_bits)
            looks[bits.label] = Look(colour, used.get(colour, 0) % _HATCHES)
            used[colour] = used.get(colour, 0) + 1
    return looks


def _legend(sites: Mapping[str, SiteBits], looks: Mapping[str, Look], total: int) -> tuple[LegendEntry, ...]:
    entries = []
    for label, look in looks.items():
        found = [bits.parameters for bits in sites.values() if bits.label == label]
        entries.append(LegendEntry(look, label, len(found), sum(found) / max(total, 1)))
    return tuple(sorted(entries, key=lambda entry: (-entry.look.bits, entry.look.hatch)))


def _table(stem: str, found: Mapping[tuple[str, int], Cell]) -> Table:
    blocks = tuple(sorted({block for _, block in found}))
    layers = dict.fromkeys(layer for layer, _ in found)
    return Table(stem, blocks, {layer: tuple(found.get((layer, block)) for block in blocks) for layer in layers})
