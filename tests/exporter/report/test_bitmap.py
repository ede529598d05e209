"""The layout of the bit map: every site once, blocks as columns, colours by bits."""

from __future__ import annotations

import pytest

from dexport.exporter.report.bitmap import Look, bit_map, look_bits
from dexport.exporter.report.data import SiteBits
from tests.exporter.report.samples import BLOCKS, LAYERS, sites


def test_every_site_is_somewhere_once() -> None:
    laid_out = bit_map("denoiser", sites())
    (table,) = laid_out.tables
    cells = [cell.site for row in table.rows.values() for cell in row if cell is not None] + [cell.site for cell in laid_out.others]
    assert sorted(cells) == sorted(sites())
    assert (table.stem, table.blocks, tuple(table.rows)) == ("transformer_blocks", tuple(range(BLOCKS)), LAYERS)
    cell = table.rows["ff.net.2"][3]
    assert cell is not None and cell.site == "transformer_blocks.3.ff.net.2"


def test_layers_that_a_block_lacks_are_gaps() -> None:
    one = SiteBits(weights="int8", weight_bits=8, parameters=1)
    laid_out = bit_map("unet", {"down.0.conv": one, "down.0.to_q": one, "down.2.conv": one, "up.0.conv": one})
    down, up = laid_out.tables
    assert down.blocks == (0, 2) and up.stem == "up"
    assert [cell is not None for cell in down.rows["to_q"]] == [True, False]


def test_treatments_of_the_same_bits_look_different() -> None:
    laid_out = bit_map("denoiser", sites())
    assert len({entry.look for entry in laid_out.legend}) == len(laid_out.legend) == 5
    assert [entry.look.bits for entry in laid_out.legend] == [16, 8, 8, 4, 4]
    assert sum(entry.share for entry in laid_out.legend) == pytest.approx(1)
    assert sum(entry.sites for entry in laid_out.legend) == len(sites())
    kept = laid_out.legend[0]
    assert (kept.label, kept.look) == ("kept in fp16", Look(16, 0)) and kept.share == pytest.approx(500 / 112_500)
    assert laid_out.legend[1].label == "int8 weights, int8 activations (table)"


@pytest.mark.parametrize(
    ("bits", "colour"), [(32, 16), (16, 16), (9, 16), (8.5, 8), (8.03, 8), (6.5, 6), (4.5, 4), (4, 4), (2.1, 2), (1.6, 2)]
)
def test_scales_do_not_change_the_colour(bits: float, colour: int) -> None:
    assert look_bits(bits) == colour


def test_weight_only_has_its_own_words() -> None:
    assert SiteBits(weights="int4", weight_bits=4.25, parameters=1).label == "int4 weights"
