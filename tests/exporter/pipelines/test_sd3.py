from pathlib import Path

import pytest

from dexport.passes.graph import Kind
from tests.exporter.pipelines.checks import Captured, captured, check_component, check_onnx, check_split, distance
from tests.exporter.pipelines.sampling import check_text, reference, sample
from tests.pipelines import tiny_sd3


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    return captured(tiny_sd3(tmp_path_factory.mktemp("sd3")))


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2", "text_encoder_3", "denoiser", "vae_decoder"])
def test_component_equals_diffusers(case: Captured, name: str) -> None:
    check_component(case, name)


def test_split_equals_whole(case: Captured) -> None:
    check_split(case)


def test_modulation_and_context_leave_the_loop(case: Captured) -> None:
    moved = {m.kinds for m in case.split.report.moved}
    assert moved == {frozenset([Kind.PROMPT]), frozenset([Kind.STEP, Kind.PROMPT])}
    assert case.split.report.kept == ()
    left = {
        name for name in case.split.loop.used_weights() if any(part in name for part in ("context_embedder", "time_text_embed", "norm1."))
    }
    assert left == set()


def test_onnx(case: Captured, tmp_path: Path) -> None:
    check_onnx(case, tmp_path)


def test_token_ids(case: Captured) -> None:
    check_text(case)


@pytest.mark.parametrize(("guidance", "negative"), [(7.0, None), (7.0, "the red"), (1.0, None)])
def test_picture_equals_diffusers(case: Captured, guidance: float, negative: str | None) -> None:
    arguments = {"steps": 3, "guidance": guidance, "seed": 5, "prompt": "A red cat"}
    wanted = reference(case, **arguments, negative_prompt=negative)
    assert distance(sample(case, **arguments, negative=negative), wanted) == 0


def test_defaults(case: Captured) -> None:
    pipeline = case.pipeline
    assert (pipeline.default_size, pipeline.size_multiple, pipeline.default_steps) == ((32, 32), 4, 28)
    assert (pipeline.guidance.kind, pipeline.guidance.default) == ("classifier-free", 7.0)
    assert pipeline.schedule_arguments((32, 32), 28) == {}


def test_without_t5_with_a_shift_by_size_and_with_dual_attention(tmp_path: Path) -> None:
    """The forms of Stable Diffusion 3.5: normalised queries and keys, a second attention, a schedule that depends on the size."""
    forms = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}
    case = captured(tiny_sd3(tmp_path, with_t5=False, scheduler={"use_dynamic_shifting": True}, **forms))
    assert [text.name for text in case.pipeline.texts] == ["text_encoder", "text_encoder_2"]
    assert set(case.pipeline.schedule_arguments((32, 32), 3)) == {"mu"}
    arguments = {"steps": 3, "guidance": 7.0, "seed": 5, "prompt": "A red cat"}
    assert distance(sample(case, **arguments), reference(case, **arguments)) == 0
    check_split(case)
