import pytest
import torch

from dexport.exporter.capture import Input, capture
from dexport.passes.graph import BATCH, Kind, Weight, call_nodes, run
from dexport.passes.repair import repair
from dexport.passes.rows import Rows, rows


class Joins(torch.nn.Module):
    """Joins its input to itself under the name given."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.join = getattr(torch, name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join([x, x], dim=-1)  # type: ignore[no-any-return]


def unread(path: str, tensor: torch.Tensor) -> Weight:
    raise AssertionError(path)


@pytest.mark.parametrize("name", ["cat", "concat", "concatenate"])
def test_every_name_of_cat_becomes_cat(name: str) -> None:
    graph = repair(capture("joins", Joins(name), (Input("x", (BATCH, 3), torch.float32, Kind.PROMPT),), ("y",), unread))
    assert {node.target for node in call_nodes(graph)} == {torch.ops.aten.cat.default}
    assert set(rows(graph).values()) - {Rows.FREE} == {Rows.ROWS}
    x = torch.randn(5, 3)
    torch.testing.assert_close(run(graph, {"x": x})["y"], torch.cat([x, x], dim=-1))
