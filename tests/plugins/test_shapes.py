"""Shapes are compared as a whole, and the first wrong one is named with all that it could be."""

from __future__ import annotations

import pytest
import torch

from dexport.plugins.shapes import require_shapes


def test_names_the_first_wrong_shape() -> None:
    right, wrong = torch.zeros(2, 3), torch.zeros(3)
    require_shapes({"a": (right, [(1, 3), (2, 3)]), "absent": (None, [(9,)]), "scalar": (torch.zeros(()), [()])})
    with pytest.raises(ValueError, match=r"^b has to be \[2\] or \[1, 3\], not \[3\]$"):
        require_shapes({"a": (right, [(2, 3)]), "b": (wrong, [(2,), (1, 3), (2,)]), "c": (wrong, [(4,)])})
