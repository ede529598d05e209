"""LoRA files in several dialects, against explicit sums and, where PEFT is installed, against diffusers' own loading and fusing."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dexport.errors import UserError
from dexport.exporter.lora import Lora, merged, open_lora, parse_lora
from dexport.exporter.weights import open_checkpoint, weight_of
from dexport.passes.graph import Weight
from tests.pipelines import tiny_stable_diffusion
from tests.pipelines_flow import save_flux

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))


def _weights(directory: Path, folder: str, dtype: torch.dtype = torch.float32) -> dict[str, Weight]:
    """The component's weights, named as in a captured graph."""
    return {f"model.{name}": weight_of(stored, name, stored.shape, dtype) for name, stored in open_checkpoint(directory / folder).items()}


def _pair(out: int, into: tuple[int, ...], rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(up, down); a kernel of the weight belongs to down."""
    generator = torch.Generator().manual_seed(seed)
    kernel = (1,) * (len(into) - 1)
    return torch.randn(out, rank, *kernel, generator=generator), torch.randn(rank, *into, generator=generator)


def _saved(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def _opened(path: Path, directory: Path, class_name: str, scale: str = "") -> Lora:
    return open_lora(parse_lora(f"{path}{scale}"), directory, class_name)


_Q = "transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(("names", "scale", "factor"), [(("lora_A", "lora_B"), "", 1.0), (("lora.down", "lora.up"), ":0.5", 0.5)])
def test_a_linear_layer_gets_the_scaled_product(flux: Path, tmp_path: Path, names: tuple[str, str], scale: str, factor: float) -> None:
    up, down = _pair(32, (32,), 4, 0)
    path = _saved(tmp_path / "a.safetensors", {f"transformer.{_Q}.{names[0]}.weight": down, f"transformer.{_Q}.{names[1]}.weight": up})
    before, lora = _weights(flux, "transformer"), _opened(path, flux, "FluxPipeline", scale)
    after = merged(before, "transformer", [lora])
    changed = [name for name in before if after[name] is not before[name]]
    assert lora.count() == 1 and changed == [f"model.{_Q}.weight"]
    wanted = before[changed[0]].load() + factor * up @ down
    assert torch.allclose(after[changed[0]].load(), wanted, atol=1e-6)
    assert after[changed[0]].origin != before[changed[0]].origin
    assert merged(before, "vae", [lora]) == before


def test_alpha_and_two_files_add_up_in_the_precision_of_the_weight(flux: Path, tmp_path: Path) -> None:
    pairs = [_pair(32, (32,), rank, rank) for rank in (2, 4)]
    loras = []
    for index, (up, down) in enumerate(pairs):
        keys = {
            f"transformer.{_Q}.lora_A.weight": down,
            f"transformer.{_Q}.lora_B.weight": up,
            f"transformer.{_Q}.alpha": torch.tensor(1.0),
        }
        loras.append(_opened(_saved(tmp_path / f"{index}.safetensors", keys), flux, "FluxPipeline", ":2"))
    before = _weights(flux, "transformer", torch.bfloat16)
    got = merged(before, "transformer", loras)[f"model.{_Q}.weight"]
    first = (before[f"model.{_Q}.weight"].load().float() + 2 / 2 * pairs[0][0] @ pairs[0][1]).bfloat16()
    assert got.dtype is torch.bfloat16
    assert torch.equal(got.load(), (first.float() + 2 / 4 * pairs[1][0] @ pairs[1][1]).bfloat16())


def test_peft_says_alpha_in_the_header(flux: Path, tmp_path: Path) -> None:
    up, down = _pair(32, (32,), 4, 0)
    keys = {f"transformer.{_Q}.lora_A.weight": down, f"transformer.{_Q}.lora_B.weight": up}
    said = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"attn.to_k": 1}, "transformer.use_rslora": False}
    path = _saved(tmp_path / "a.safetensors", keys, {"lora_adapter_metadata": json.dumps(said)})
    assert _opened(path, flux, "FluxPipeline").deltas["transformer"][f"{_Q}.weight"].factor == 2.0
    said |= {"transformer.alpha_pattern": {"attn.to_q": 1}, "transformer.use_rslora": True}
    path = _saved(tmp_path / "b.safetensors", keys, {"lora_adapter_metadata": json.dumps(said)})
    assert _opened(path, flux, "FluxPipeline").deltas["transformer"][f"{_Q}.weight"].factor == 0.5


def _kohya(directory: Path) -> tuple[Tensors, dict[str, tuple[str, str]]]:
    """A kohya file for Stable Diffusion and what each of its modules is: name -> (folder, weight)."""
    modules = {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q": (
            "unet",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0": (
            "unet",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
        ),
        "lora_unet_down_blocks_1_attentions_0_proj_in": ("unet", "down_blocks.1.attentions.0.proj_in"),
        "lora_unet_down_blocks_1_resnets_0_conv1": ("unet", "down_blocks.1.resnets.0.conv1"),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": ("text_encoder", "encoder.layers.0.self_attn.q_proj"),
        "lora_te_text_model_encoder_layers_0_self_attn_out_proj": ("text_encoder", "encoder.layers.0.self_attn.out_proj"),
        "lora_te_text_model_encoder_layers_1_mlp_fc1": ("text_encoder", "encoder.layers.1.mlp.fc1"),
    }
    tensors: Tensors = {}
    for seed, (key, (folder, module)) in enumerate(modules.items()):
        shapes = {name.removeprefix("text_model."): stored.shape for name, stored in open_checkpoint(directory / folder).items()}
        out, *into = shapes[f"{module}.weight"]
        up, down = _pair(out, tuple(into), 2, seed)
        tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(float(seed + 1))}
    return tensors, modules


def test_kohya_files_change_unet_convolutions_and_text_encoder(sd: Path, tmp_path: Path) -> None:
    tensors, modules = _kohya(sd)
    lora = _opened(_saved(tmp_path / "k.safetensors", tensors), sd, "StableDiffusionPipeline", ":0.5")
    assert lora.count() == len(modules)
    for seed, (key, (folder, module)) in enumerate(modules.items()):
        before = {name.replace("text_model.", ""): weight for name, weight in _weights(sd, folder).items()}
        name = f"model.{module}.weight"
        up, down = tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"]
        wanted = before[name].load() + 0.5 * (seed + 1) / 2 * (up.flatten(1) @ down.flatten(1)).reshape(before[name].shape)
        assert torch.allclose(merged(before, folder, [lora])[name].load(), wanted, atol=1e-5), key


@pytest.mark.parametrize("dialect", ["kohya", "peft"])
def test_merging_equals_diffusers_fusing(sd: Path, flux: Path, tmp_path: Path, dialect: str) -> None:
    pytest.importorskip("peft", reason="diffusers loads LoRA files only with PEFT")
    from diffusers import DiffusionPipeline

    if dialect == "kohya":
        # One alpha for all: diffusers 0.42 loses those that differ ("alpha_pattern keys did not match any targeted module").
        directory, class_name, (tensors, _) = sd, "StableDiffusionPipeline", _kohya(sd)
        tensors |= {key: torch.tensor(3.0) for key in tensors if key.endswith(".alpha")}
    else:
        directory, class_name, tensors = flux, "FluxPipeline", {}
        for seed, module in enumerate((_Q, "single_transformer_blocks.1.proj_mlp", "transformer_blocks.1.ff.net.0.proj")):
            out, into = open_checkpoint(flux / "transformer")[f"{module}.weight"].shape
            up, down = _pair(out, (into,), 2 + seed, seed)
            tensors |= {f"transformer.{module}.lora_A.weight": down, f"transformer.{module}.lora_B.weight": up}
    path = _saved(tmp_path / "x.safetensors", tensors)
    pipeline = DiffusionPipeline.from_pretrained(directory)
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora(lora_scale=0.7, components=[c for c in ("unet", "transformer", "text_encoder") if getattr(pipeline, c, None)])
    lora, checked = _opened(path, directory, class_name, ":0.7"), 0
    for folder in lora.deltas:
        fused = {
            name.replace(".base_layer", "").replace("text_model.", ""): t for name, t in getattr(pipeline, folder).state_dict().items()
        }
        for name, weight in merged(_weights(directory, folder), folder, [lora]).items():
            plain = name.removeprefix("model.").replace("text_model.", "")
            if plain in fused:
                assert torch.allclose(weight.load(), fused[plain], atol=1e-5), name
                checked += 1
    assert checked > lora.count()


def _refused(text: str, keys: Tensors, tmp_path: Path, directory: Path) -> None:
    path = _saved(tmp_path / "bad.safetensors", keys)
    with pytest.raises(UserError, match=text):
        _opened(path, directory, "FluxPipeline")


def test_files_that_do_not_fit_are_refused(flux: Path, tmp_path: Path) -> None:
    up, down = _pair(32, (32,), 4, 0)
    whole = {f"transformer.{_Q}.lora_A.weight": down, f"transformer.{_Q}.lora_B.weight": up}
    _refused(r"expected keys like <component>.*got bar, foo.weight; convert", {"foo.weight": up, "bar": down}, tmp_path, flux)
    _refused(r"expected keys like", {f"transformer.{_Q}.lora_A.weight": down}, tmp_path, flux)
    _refused(
        r"expected a plain LoRA, got .*lora_magnitude_vector", {**whole, f"transformer.{_Q}.lora_magnitude_vector": up}, tmp_path, flux
    )
    elsewhere = {key.replace("to_q", "to_z"): tensor for key, tensor in whole.items()}
    _refused(
        r"expected changes of weights in .*got transformer\.transformer_blocks\.0\.attn\.to_z \(no such weight\)", elsewhere, tmp_path, flux
    )
    _refused(
        r"to_q \(weight \[32, 32\], change \[32, 4\] by \[4, 16\]\)",
        {**whole, f"transformer.{_Q}.lora_A.weight": down[:, :16]},
        tmp_path,
        flux,
    )
    _refused(r"got prior\.x \(no such weight\)", {"prior.x.lora_A.weight": down, "prior.x.lora_B.weight": up}, tmp_path, flux)


def test_what_the_user_writes(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.safetensors", {"x": torch.zeros(1)})
    assert parse_lora(str(path)).scale == 1.0 and parse_lora(f"{path}:-0.25").scale == -0.25
    with pytest.raises(UserError, match=rf"lora: expected FILE or FILE:SCALE with a number as scale, got {re.escape(str(path))}:strong"):
        parse_lora(f"{path}:strong")
    with pytest.raises(UserError, match=r"expected a \.safetensors file, got no such file"):
        parse_lora(str(tmp_path / "none.safetensors:1"))
    other = tmp_path / "a.bin"
    other.write_bytes(b"x")
    with pytest.raises(UserError, match=r"expected a \.safetensors file, got another format"):
        parse_lora(str(other))
