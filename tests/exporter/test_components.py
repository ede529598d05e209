from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dexport.errors import Failure, UserError
from dexport.exporter.capture import Input
from dexport.exporter.components import load_component
from dexport.exporter.pipelines.family import Component
from dexport.passes.graph import BATCH, Graph, Kind, run


class Model(nn.Module):
    """A linear layer after batch normalisation, and a layer that forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear, self.unused = nn.BatchNorm1d(4), nn.Linear(4, 3), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(x))  # type: ignore[no-any-return]


class Wrapper(nn.Module):
    """Calls `model`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)  # type: ignore[no-any-return]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Saves a Model with statistics that are not the initial ones; returns its tensors."""
    torch.manual_seed(0)
    state = Model().state_dict()
    state["norm.running_mean"], state["norm.running_var"] = torch.randn(4), torch.rand(4) + 0.5
    save_file(state, folder / "model.safetensors")
    return state


def load(folder: Path, construct: Callable[[], nn.Module] = Model, dtype: torch.dtype = torch.float32) -> Graph:
    inputs = (Input("x", (BATCH, 4), dtype, Kind.LATENT),)
    return load_component(folder.parent, Component("thing", folder.name, construct, Wrapper, inputs, ("y",)), dtype)


def expected(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    model = Model().eval()
    model.load_state_dict(state)
    with torch.no_grad():
        return model(x)  # type: ignore[no-any-return]


def test_weights_and_saved_buffers_are_read(tmp_path: Path) -> None:
    state = stored(tmp_path)
    x = torch.randn(5, 4)
    torch.testing.assert_close(run(load(tmp_path), {"x": x})["y"], expected(state, x))


def test_only_what_forward_uses_must_be_stored(tmp_path: Path) -> None:
    state = stored(tmp_path)
    save_file({name: tensor for name, tensor in state.items() if not name.startswith("unused")}, tmp_path / "model.safetensors")
    assert "model.linear.weight" in load(tmp_path).used_weights()


def test_weights_take_the_dtype_asked_for(tmp_path: Path) -> None:
    stored(tmp_path)
    assert {w.dtype for w in load(tmp_path, dtype=torch.float16).used_weights().values()} == {torch.float16}


def test_a_missing_parameter_is_named(tmp_path: Path) -> None:
    state = stored(tmp_path)
    del state["linear.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(
        UserError, match=r"expected a tensor named linear.weight, got 8 tensors without it; check that weights and config.json"
    ):
        load(tmp_path)


def test_another_shape_is_refused(tmp_path: Path) -> None:
    state = stored(tmp_path)
    save_file({**state, "linear.weight": torch.zeros(3, 5)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"linear.weight: expected shape \(3, 4\) \(config.json\), got \(3, 5\)"):
        load(tmp_path)


def test_tied_parameters_share_their_stored_tensor(tmp_path: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=10, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(tmp_path / "text")

    class Encoder(Wrapper):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x)[0]  # type: ignore[no-any-return]

    ids = Input("x", (BATCH, 6), torch.int64, Kind.PROMPT)
    component = Component("text", "text", lambda: T5EncoderModel(config), Encoder, (ids,), ("y",))
    origins = [w.origin for name, w in load_component(tmp_path, component, torch.float32).used_weights().items() if "embed" in name]
    assert len(origins) == 1 and ":shared.weight:" in origins[0]


def test_attention_blocks_of_old_autoencoders(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, layers_per_block=1).eval()
    model.save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for today, before in old.items():
        tensors = {name.replace(f".{today}.", f".{before}."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.")}, file)

    class Decoder(Wrapper):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model.decode(x).sample  # type: ignore[operator, no-any-return]

    latent = Input("x", (BATCH, 4, 4, 4), torch.float32, Kind.LATENT)
    component = Component("vae", "vae", lambda: AutoencoderKL.from_config(model.config), Decoder, (latent,), ("y",))
    x = torch.randn(3, 4, 4, 4)
    with torch.no_grad():
        wanted = model.decode(x).sample
    torch.testing.assert_close(run(load_component(tmp_path, component, torch.float32), {"x": x})["y"], wanted)


class BranchesOnLargeBatches(Model):
    """Takes another way from 64 rows on, as upsampling in diffusers does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.contiguous() if x.shape[0] >= 64 else x)


class FixedBatch(Model):
    """Works for two rows only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.reshape(2, 4))


def test_a_model_may_branch_on_large_batches(tmp_path: Path) -> None:
    state = stored(tmp_path)
    x = torch.randn(100, 4)
    torch.testing.assert_close(run(load(tmp_path, BranchesOnLargeBatches), {"x": x})["y"], expected(state, x))


def test_a_model_with_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    stored(tmp_path)
    with pytest.raises(Failure, match=r"thing: expected a model that torch.export can trace, got .*; see the adapter of this family"):
        load(tmp_path, FixedBatch)
