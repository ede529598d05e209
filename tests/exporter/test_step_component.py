"""Steps that are not linear become graphs, one per structure, or are refused naming what stands in the way."""

from typing import Any

import diffusers
import pytest
import torch

from dexport.errors import UserError
from dexport.exporter.scheduler_run import Schedule
from dexport.exporter.solver import probe

pytestmark = pytest.mark.filterwarnings("ignore:.*__array_:DeprecationWarning")  # diffusers with numpy 2


class Clipping(diffusers.EulerDiscreteScheduler):  # type: ignore[misc]
    """A clipped step with whatever `twist` adds to it."""

    @staticmethod
    def twist(scheduler: Any, sample: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return output

    def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> tuple[torch.Tensor]:
        return (sample.clamp(-1, 1) + (timestep / 1000) * self.twist(self, sample, model_output),)


def test_steps_of_one_structure_share_a_graph_and_differ_in_scalars() -> None:
    solver = probe(diffusers.DDPMScheduler(), Schedule(5))
    assert solver.stepped is not None
    noisy, last = solver.stepped.components
    assert noisy.inputs == ("sample", "model_output", "noise0", "scalars")
    assert last.inputs == ("sample", "model_output")
    assert noisy.table.shape[:2] == (4, 1)
    assert last.table.shape == (1, 1, 0)
    assert [(use.component, use.row) for use in solver.stepped.uses] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    clamps = [node for node in noisy.graph.graph.nodes if node.target is torch.ops.aten.clamp.default]
    assert [node.args[1:] for node in clamps] == [(-1.0, 1.0)]


def _remembering(scheduler: Any, sample: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    before = getattr(scheduler, "before", output)
    scheduler.before = output
    return output + before


def _remembering_a_number(scheduler: Any, sample: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    before = getattr(scheduler, "before", torch.tensor(1.0))
    scheduler.before = output.mean()
    return output * before


TWISTS = [
    (_remembering, r"step 1 .*, and it uses a tensor of shape \[1, 3, 4, 5\] that is not sample, model output or noise"),
    (_remembering_a_number, r"step 1 .*, and history"),
    (
        lambda scheduler, sample, output: output * torch.ones(output.shape[-1]),
        r"step 0 .*, and it uses a tensor of shape \[5\] that is not .*",
    ),
    (lambda scheduler, sample, output: output.clone().add_(sample), r"step 0 .*, and it calls aten.add_.Tensor on its tensors"),
    (lambda scheduler, sample, output: output.sort().values, r"step 0 .*, and it calls aten.sort.default on its tensors"),
    (lambda scheduler, sample, output: output * output.shape[-1], r"step 0 .*, and .*sample's shape"),
    (
        lambda scheduler, sample, output: output if float(output.max()) < 10 else 2 * output,
        r"step 0 .*, and it calls aten._local_scalar_dense.default on its tensors",
    ),
    (
        lambda scheduler, sample, output: output if output.numpy().max() < 10 else 2 * output,
        r"step 0 .*, and its operations depend on its numbers \(at magnitude 100\)",
    ),
]


@pytest.mark.parametrize(("twist", "message"), TWISTS, ids=range(len(TWISTS)))
def test_refusals_name_what_stands_in_the_way(twist: Any, message: str) -> None:
    scheduler = type("Twisted", (Clipping,), {"twist": staticmethod(twist)})()
    with pytest.raises(UserError, match=f"scheduler Twisted, {message}; choose another scheduler"):
        probe(scheduler, Schedule(3))


def test_a_model_input_that_is_not_the_scaled_sample_is_refused() -> None:
    class Shifted(Clipping):
        def scale_model_input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
            return sample.clamp(-1, 1)

    with pytest.raises(UserError, match=r"scheduler Shifted, step 0 .*, and a model input that is not the scaled sample; choose"):
        probe(Shifted(), Schedule(3))
