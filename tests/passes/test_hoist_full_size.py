"""Hoisting at the size of a released model, without its weights."""

import torch
from diffusers import DiTTransformer2DModel

from dexport.exporter.capture import Input, capture
from dexport.exporter.hollow import hollow_model
from dexport.exporter.pipelines.dit import Denoiser
from dexport.passes.graph import BATCH, Kind, Weight
from dexport.passes.hoist import hoist
from dexport.passes.repair import repair


def dit_xl_2() -> torch.nn.Module:
    """DiT-XL/2 at 256x256 pixels. Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023, table 1."""
    return DiTTransformer2DModel(
        num_attention_heads=16,
        attention_head_dim=72,
        in_channels=4,
        out_channels=8,
        num_layers=28,
        sample_size=32,
        patch_size=2,
        norm_type="ada_norm_zero",
        num_embeds_ada_norm=1000,
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )


def unread(path: str, tensor: torch.Tensor) -> Weight:
    return Weight(tuple(tensor.shape), tensor.dtype, lambda: tensor, path)


def test_two_fifths_of_dit_xl_2_leave_the_loop() -> None:
    inputs = (
        Input("latent", (BATCH, 4, 32, 32), torch.float32, Kind.LATENT),
        Input("timestep", (1,), torch.float32, Kind.STEP),
        Input("class_label", (BATCH,), torch.int64, Kind.PROMPT),
    )
    module = Denoiser(hollow_model(dit_xl_2, torch.float32), 4)
    report = hoist(repair(capture("denoiser", module, inputs, ("model_output",), unread))).report
    assert report.kept == ()
    attention_and_feed_forward, patches, output = 28 * 12 * 1152**2, 1152 * 4 * 2 * 2, 1152 * 8 * 2 * 2
    assert report.loop_parameters == attention_and_feed_forward + patches + output  # what touches the latent, and nothing else
    assert round(report.loop_parameters / report.parameters, 3) == 0.595
