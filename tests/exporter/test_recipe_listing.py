"""The list of recipes and the explanation of each."""

from __future__ import annotations

import pytest

from dexport.errors import UserError
from dexport.exporter.recipe_listing import explained, legal_targets, recipe_rows
from dexport.passes.quantization.recipe_file import find_recipe, recipe_names


def test_every_recipe_is_listed_with_bits_and_needs() -> None:
    rows = {row.name: row for row in recipe_rows()}
    assert list(rows) == recipe_names()
    assert (rows["int8"].bits, rows["int8"].needs) == ("W8A8", "calibration")
    assert (rows["int4-weight-only"].bits, rows["int4-weight-only"].needs) == ("W4A16", "nothing")
    assert rows["svdquant-w4a4"].bits == "W4A4" and rows["fp4dit-w4a6"].bits == "W4A6"
    assert rows["q-diffusion-w4a8"].needs == "calibration, learned rounding"
    assert rows["vidit-q-mp"].needs == "calibration, sensitivity"
    assert all(row.summary.endswith(".") for row in rows.values())


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_explained(name: str) -> None:
    facts = dict(explained(name))
    assert facts["recipe"] == name and facts["denoiser"] and facts["exact on"]


def test_targets_follow_from_what_they_compute() -> None:
    assert {"cpu", "onnxruntime-cpu", "rtx-4090", "jetson-orin@jetpack-6.1"} <= set(legal_targets(find_recipe("int8")))
    fp8 = legal_targets(find_recipe("fp8"))
    assert "rtx-4090" in fp8 and "rtx-3090" not in fp8 and "cpu" not in fp8
    assert {"rtx-4090", "jetson-thor@jetpack-7.0"} <= set(legal_targets(find_recipe("fp8-attention"))) <= set(fp8)
    assert not legal_targets(find_recipe("dgq-w4a8"))
    nvfp4 = legal_targets(find_recipe("nvfp4"))
    assert "rtx-5090" in nvfp4 and "rtx-4090" not in nvfp4


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean"):
        list(explained("vidit-w8a8"))
