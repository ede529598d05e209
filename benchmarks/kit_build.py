"""How much memory and time does a Jetson build kit take? Full-size shapes, weights streamed, no engine, no golden run.

    pixart  PixArt-XL/2, 610 M parameters in fp32 safetensors (2.4 GB): peak memory at most 2 GiB, imports included
    flux    FLUX.1-dev, 11.9 G parameters in bf16 shards: at most 4 GiB and 15 minutes on two cores

Weights are sparse files (zeros). Text encoders and VAE are small, so that the denoiser is what is measured. Beside it, in the same run,
torch.onnx.export of the loaded PixArt model, which is what a user has today.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from provenance import write_result

SEED = 0
_LIMITS = {"pixart": (2.0, None), "flux": (4.0, 900.0)}


def main() -> int:
    """Builds in processes of their own, so that each peak is its own; 1 if a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("pixart", "flux"), default=["pixart", "flux"])
    parser.add_argument("--child", choices=("pixart", "flux", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measured(arguments.child, arguments.folder)))
        return 0
    rows, good = [], True
    for model in arguments.models:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            (write_pixart if model == "pixart" else write_flux)(Path(folder) / "model")
            ours = in_child(model, Path(folder))
            limit_gib, limit_s = _LIMITS[model]
            good &= ours["peak GiB"] <= limit_gib and (limit_s is None or ours["seconds"] <= limit_s)
            rows.append({"what": f"dexport build, {model}", **ours, "limit GiB": limit_gib})
            if model == "pixart":
                plain = in_child("plain", Path(folder))
                rows.append({"what": "torch.onnx.export, pixart", **plain})
                rows.append({"what": "ratio", **{key: ours[key] / plain[key] for key in ("seconds", "peak GiB")}})
    write_result("kit_build", SEED, rows, "jetson-orin build kit at full size, fp16")
    return 0 if good else 1


def in_child(what: str, folder: Path) -> dict[str, Any]:
    """Runs one measurement in a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--child", what, "--folder", str(folder)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def measured(what: str, folder: Path) -> dict[str, Any]:
    """Seconds, processor seconds and peak resident memory of one build or export in this process."""
    started = time.perf_counter()
    (plain if what == "plain" else kit)(folder)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": time.perf_counter() - started,
        "cpu seconds": usage.ru_utime + usage.ru_stime,
        "peak GiB": usage.ru_maxrss / 2**20,
    }


def kit(folder: Path) -> None:
    """dexport build --target jetson-orin --golden none."""
    from dexport.exporter.build import build
    from dexport.exporter.options import BuildOptions

    options = BuildOptions(model=str(folder / "model"), target="jetson-orin", steps=(20,), golden="none")
    build(options, folder / "kit", lambda stage, done: print(stage, file=sys.stderr, flush=True))
    shutil.rmtree(folder / "kit")


def plain(folder: Path) -> None:
    """torch.onnx.export of the loaded denoiser, saved with external data."""
    import torch
    from cpu_loop import Denoiser
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel.from_pretrained(folder / "model" / "transformer").eval()
    arguments = (torch.randn(2, 4, 64, 64), torch.randn(2, 120, 4096), torch.ones(2, 120), torch.full((2,), 500))
    exported = torch.onnx.export(Denoiser(model).eval(), arguments, dynamo=True, verbose=False)
    exported.save(folder / "plain.onnx", external_data=True)


def write_pixart(directory: Path) -> None:
    """PixArt-XL/2 at 512 pixels."""
    import torch
    from diffusers import PixArtTransformer2DModel
    from random_pixart import random_pixart
    from sparse_checkpoint import write_sparse_model

    from dexport.exporter.hollow import hollow_model

    random_pixart(directory, layers=1, heads=2, head_dim=8, caption=4096, sample_size=64, seed=SEED)
    shutil.rmtree(directory / "transformer")
    shape = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "cross_attention_dim": 1152, "caption_channels": 4096}
    model = hollow_model(
        lambda: PixArtTransformer2DModel(in_channels=4, out_channels=8, sample_size=64, use_additional_conditions=False, **shape),
        torch.float32,
    )
    write_sparse_model(model, directory / "transformer", torch.float32)


def write_flux(directory: Path) -> None:
    """FLUX.1-dev at 1024 pixels, with text encoders of the right width and almost no depth."""
    import torch
    from diffusers import FluxTransformer2DModel
    from sparse_checkpoint import write_sparse_model
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    from dexport.exporter.hollow import hollow_model

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.pipelines_flow import save_flux

    save_flux(directory)
    words = {name: json.loads((directory / name / "config.json").read_text())["vocab_size"] for name in ("text_encoder", "text_encoder_2")}
    clip = {"hidden_size": 768, "intermediate_size": 64, "num_attention_heads": 12, "num_hidden_layers": 1, "max_position_embeddings": 77}
    CLIPTextModel(CLIPTextConfig(vocab_size=words["text_encoder"], eos_token_id=2, **clip)).save_pretrained(directory / "text_encoder")
    t5 = T5Config(vocab_size=words["text_encoder_2"], d_model=4096, d_ff=64, d_kv=64, num_layers=1, num_heads=1)
    T5EncoderModel(t5).save_pretrained(directory / "text_encoder_2")
    vae = directory / "vae" / "config.json"
    channels = json.loads(vae.read_text())["latent_channels"]
    shutil.rmtree(directory / "transformer")
    model = hollow_model(lambda: FluxTransformer2DModel(guidance_embeds=True, in_channels=4 * channels), torch.bfloat16)
    write_sparse_model(model, directory / "transformer", torch.bfloat16, shard_bytes=10 << 30)


if __name__ == "__main__":
    sys.exit(main())
