"""Models that published latencies are about, captured from their configurations alone: every component, no weights."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dexport.exporter.capture import capture
from dexport.exporter.hollow import hollow_model
from dexport.exporter.operations import Form, Operations, Planned, is_product, is_view
from dexport.exporter.pipelines import open_directory
from dexport.passes.graph import BATCH, STEPS, Graph, Weight, call_nodes, is_tensor
from dexport.passes.hoist import hoist
from dexport.passes.ports import widen_ports
from dexport.passes.quantization.sites import sites
from dexport.passes.repair import repair
from dexport.targets.latency import Work

Configs = Mapping[str, Mapping[str, Any]]

_CLIP_L = {
    "model_type": "clip_text_model",
    "max_position_embeddings": 77,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_CLIP_G = {
    **_CLIP_L,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
_T5_XXL = {
    "model_type": "t5",
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}
_LEVELS = 4
_IMAGE_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.13025,
    "down_block_types": ["DownEncoderBlock2D"] * _LEVELS,
    "up_block_types": ["UpDecoderBlock2D"] * _LEVELS,
}
_FLUX = {"in_channels": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True}
_PIXART = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": 128,
    "patch_size": 2,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}
_SDXL = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@dataclass(frozen=True)
class Captured:
    """A pipeline: its class, configurations by folder, a size in pixels, and how many rows one call of the denoiser has."""

    pipeline: str
    configs: Configs
    size: tuple[int, int]
    frames: int | None = None
    rows: int = 1


def _flux(size: tuple[int, int]) -> Captured:
    vae = {
        **_IMAGE_VAE,
        "latent_channels": 16,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    return Captured("FluxPipeline", {"transformer": _FLUX, "vae": vae, "text_encoder": _CLIP_L, "text_encoder_2": _T5_XXL}, size)


_SDXL_CONFIGS = {"unet": _SDXL, "vae": _IMAGE_VAE, "text_encoder": _CLIP_L, "text_encoder_2": _CLIP_G}
MODELS = {
    "FLUX.1-dev 1024x1024": _flux((1024, 1024)),
    "FLUX.1-dev 768x768": _flux((768, 768)),
    "SDXL 1024x1024": Captured("StableDiffusionXLPipeline", _SDXL_CONFIGS, (1024, 1024), rows=2),
    "PixArt-alpha 1024x1024": Captured(
        "PixArtAlphaPipeline", {"transformer": _PIXART, "vae": _IMAGE_VAE, "text_encoder": _T5_XXL}, (1024, 1024), rows=2
    ),
}


def captured(model: Captured, dtype: torch.dtype = torch.bfloat16) -> Iterator[Graph]:
    """Every component but those of the sampler, one after the other; the denoiser is what stays in its loop."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        for part, config in model.configs.items():
            (directory / part).mkdir()
            (directory / part / "config.json").write_text(json.dumps(config))
        (directory / "model_index.json").write_text(
            json.dumps({"_class_name": model.pipeline, **{part: ["", ""] for part in model.configs}})
        )
        pipeline = open_directory(directory, model.frames)
        for component in pipeline.components(model.size, dtype):
            module = hollow_model(component.construct, torch.float32 if component.wide else dtype)
            whole = capture(component.name, component.wrap(module), component.inputs, component.outputs, _without_values)
            graph = repair(whole)
            yield widen_ports(hoist(graph).loop if component.name == "denoiser" else graph)


def _without_values(path: str, tensor: torch.Tensor) -> Weight:
    return Weight(tuple(tensor.shape), tensor.dtype, lambda: tensor, path)


FORMS = {
    "fp8": Planned(Form("fp8", 8, 8)),
    "int8": Planned(Form("int8", 8, 8)),
    "int4": Planned(Form("int4", 4.25, 4.25), 32),
    "nvfp4": Planned(Form("nvfp4", 4.5, 4.5), 32),
}
"""What quantized layers of published rows are, with SVDQuant's branch of rank 32 for 4 bits."""


def works_of(model: Captured) -> dict[str, Any]:
    """Component -> format of the layers -> counted operations, for one row or, with guidance in one call, two."""
    found: dict[str, Any] = {}
    for graph in captured(model):
        sizes = {BATCH: model.rows, STEPS: 1}
        plain = Operations(graph, sizes)
        nodes = {node.name: node for node in call_nodes(graph)}
        forms = FORMS if graph.name == "denoiser" else {}
        planned = {format: {nodes[site.node]: form for site in sites(graph)} for format, form in forms.items()}
        works = {"bf16": plain.all()} | {format: Operations(graph, sizes, layers).all() for format, layers in planned.items()}
        found[graph.name] = {format: counted(each) for format, each in works.items()}
        found[graph.name]["eager"] = _one_by_one(graph, plain)
    return found


def counted(works: Iterable[Work]) -> list[list[Any]]:
    """Equal operations once, with their number."""
    counts = Counter((w.kind, w.operations, w.bytes, w.format) for w in works)
    return [[count, *work] for work, count in counts.items()]


def _one_by_one(graph: Graph, operations: Operations) -> list[float]:
    """Kernels, and bytes that those other than products move, where every operation is a kernel of its own."""
    kernels, moved = 0, 0.0
    for node in call_nodes(graph):
        if is_tensor(node) and not is_view(node):
            kernels += 1
            if not is_product(node):
                moved += sum(operations.nbytes(one) for one in (node, *node.all_input_nodes) if is_tensor(one))
    return [kernels, moved]


def main() -> None:
    """Captures every model and writes published_works.json: half an hour of one core."""
    path = Path(__file__).with_name("published_works.json")
    found = json.loads(path.read_text()) if path.exists() else {}
    for name, model in MODELS.items():
        if name not in found:
            found[name] = works_of(model)
            path.write_text(json.dumps(found, separators=(",", ":")) + "\n")
            print(name, flush=True)


if __name__ == "__main__":
    main()
