from pathlib import Path

import pytest
import torch

from dexport.errors import UserError
from dexport.passes.graph import Kind
from tests.exporter.pipelines.checks import Captured, captured, check_component, check_onnx, check_split, distance
from tests.exporter.pipelines.sampling import reference, sample
from tests.pipelines import tiny_dit


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    return captured(tiny_dit(tmp_path_factory.mktemp("dit")))


@pytest.mark.parametrize("name", ["denoiser", "vae_decoder"])
def test_component_equals_diffusers(case: Captured, name: str) -> None:
    check_component(case, name)


def test_split_equals_whole(case: Captured) -> None:
    check_split(case)


def test_all_modulation_leaves_the_loop(case: Captured) -> None:
    assert {m.kinds for m in case.split.report.moved} == {frozenset([Kind.STEP, Kind.PROMPT])}
    assert case.split.report.kept == ()
    assert not [name for name in case.split.loop.used_weights() if ".norm1." in name]


def test_onnx(case: Captured, tmp_path: Path) -> None:
    check_onnx(case, tmp_path)


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_picture_equals_diffusers(case: Captured, guidance: float) -> None:
    arguments = {"steps": 3, "guidance": guidance, "seed": 5}
    assert distance(sample(case, **arguments, label=207), reference(case, **arguments, class_labels=[207])) == 0


def test_defaults(case: Captured) -> None:
    pipeline = case.pipeline
    assert (pipeline.default_size, pipeline.default_steps, pipeline.texts) == ((32, 32), 50, ())
    assert (pipeline.guidance.kind, pipeline.guidance.default) == ("classifier-free", 4.0)
    assert pipeline.requests[0].negative == 1000


def test_another_size_is_refused(case: Captured) -> None:
    with pytest.raises(UserError, match="expected size 32x32, the only one of DiTPipeline, got 64x64; leave the size out"):
        case.pipeline.components((64, 64), torch.float32)
