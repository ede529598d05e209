"""What a build decides before it works; what it refuses is in test_bad_input.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dexport.errors import UserError
from dexport.exporter.options import BuildOptions
from dexport.exporter.plan import plan


def test_defaults_are_the_pipelines_own(pixart: Path) -> None:
    decided = plan(BuildOptions(model=str(pixart), target="cpu"))
    assert (decided.sizes, decided.steps, decided.guidance, decided.guided) == (((16, 16),), (20,), 4.5, True)
    assert type(decided.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert decided.lines() == [
        f"model      {pixart} (PixArtAlphaPipeline, family pixart)",
        f"target     cpu ({decided.target.name}), backend openvino",
        "precision  fp32",
        "sizes      16x16",
        "components text_encoder, denoiser, vae_decoder",
        "sampling   DPMSolverMultistepScheduler, steps 20",
        "guidance   classifier-free, default 4.5",
    ]


def test_options_replace_them(pixart: Path) -> None:
    options = BuildOptions(model=str(pixart), target="cpu", sizes=((16, 24), (32, 16)), steps=(4, 8), guidance=2.0, scheduler="DDIM")
    decided = plan(options)
    assert (decided.sizes, decided.steps, decided.guidance) == (((16, 24), (32, 16)), (4, 8), 2.0)
    assert type(decided.scheduler).__name__ == "DDIMScheduler"
    assert decided.schedule((16, 24), 4).steps == 4


@pytest.mark.parametrize(
    ("target", "precision", "dtype", "storage"),
    [
        ("cpu", "bf16", torch.float32, torch.bfloat16),
        ("onnxruntime-cpu", "fp16", torch.float32, torch.float16),
        ("rtx-4090", "fp16", torch.float16, torch.float16),
    ],
)
def test_processors_compute_in_fp32_and_store_narrow(
    pixart: Path, target: str, precision: str, dtype: torch.dtype, storage: torch.dtype
) -> None:
    decided = plan(BuildOptions(model=str(pixart), target=target, precision=precision))
    assert (decided.dtype, decided.storage) == (dtype, storage)


def test_a_precision_that_is_none_is_refused(pixart: Path) -> None:
    with pytest.raises(UserError, match="precision: expected fp32, fp16 or bf16, got int3; choose one of them"):
        plan(BuildOptions(model=str(pixart), target="cpu", precision="int3"))


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "rtx-4090"])
def test_a_kit_of_what_needs_none_is_refused(pixart: Path, target: str) -> None:
    with pytest.raises(UserError, match=r"--kit: expected the target cpu or a Jetson, got .*nothing to be built on the device; drop --kit"):
        plan(BuildOptions(model=str(pixart), target=target, kit=True))


def test_a_budget_of_time_needs_a_device_whose_speed_is_known() -> None:
    message = "^--budget-ms: expected a device whose speed is known, got cpu: its speed depends on the machine at hand; drop it, or choose"
    with pytest.raises(UserError, match=message):
        plan(BuildOptions(model="anything", target="cpu", recipe="vidit-q-mp", budget_ms=5.0))
