from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from dexport.errors import UserError
from dexport.exporter.modelopt_bridge import SiteValues, read_modelopt, unread_quantizers
from dexport.plugins.formats import fake_quantize, format_of


class Two(nn.Module):
    """Two linears with an activation between them; 24 inputs: one and a half blocks of 16."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(24, 32), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(functional.gelu(self.first(x)))  # type: ignore[no-any-return]


def calls() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 5, 24, generator=generator) * (1 + torch.arange(24)) for _ in range(3)]


def ranges(model: nn.Module) -> dict[str, torch.Tensor]:
    """Our statistic: largest magnitude per input channel over all calls, by site."""
    seen: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def note(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            here = arguments[0].abs().flatten(0, -2).amax(0)
            seen[name] = torch.maximum(here, seen.get(name, here))

        return note

    for name in ("first", "second"):
        model.get_submodule(name).register_forward_pre_hook(watch(name))
    with torch.no_grad():
        for x in calls():
            model(x)
    return seen


def quantized(folder: Path, name: str, **changes: Any) -> tuple[nn.Module, Path]:
    """A model quantized by ModelOpt's configuration, and the file that ModelOpt saved."""
    mtq = pytest.importorskip("modelopt.torch.quantization", reason="nvidia-modelopt is not installed")
    import modelopt.torch.opt as mto

    model = Two()
    configuration = copy.deepcopy(getattr(mtq, name)) | changes
    with torch.no_grad():
        mtq.quantize(model, configuration, lambda m: [m(x) for x in calls()])
    path = folder / "saved.pth"
    mto.save(model, path)
    return model, path


def recomputed(values: SiteValues, bias: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What the values say, by the module's docstring."""
    x = x if values.pre_quant_scale is None else x * values.pre_quant_scale
    weight = values.weight
    for quantizer in values.weights:
        assert quantizer.amax is not None
        amax = quantizer.amax
        if quantizer.block:
            amax = amax.repeat_interleave(quantizer.block, 1)[:, : weight.shape[1]]
        elif amax.dim():
            amax = amax[:, None]
        number = format_of(quantizer.format)
        weight = fake_quantize(weight, amax / number.largest, number)
    branch = bias if values.low_rank is None else bias + x @ values.low_rank[0].T @ values.low_rank[1].T
    if values.inputs is not None:
        assert values.inputs.amax is not None
        number = format_of(values.inputs.format)
        x = fake_quantize(x, values.inputs.amax / number.largest, number)
    return x @ weight.T + branch


BLOCKS = [
    {"quantizer_name": "*", "enable": False},
    {
        "quantizer_name": "*weight_quantizer",
        "cfg": [{"num_bits": 4, "block_sizes": {-1: 16, "type": "static"}}, {"num_bits": (4, 3), "axis": None}],
    },
    {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": (4, 3), "axis": None}},
]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("INT8_DEFAULT_CFG", {}),
        ("INT8_SMOOTHQUANT_CFG", {}),
        ("FP8_DEFAULT_CFG", {}),
        ("W4A8_AWQ_BETA_CFG", {"quant_cfg": BLOCKS}),
        ("INT8_DEFAULT_CFG", {"algorithm": {"method": "svdquant", "lowrank": 4}}),
    ],
    ids=["int8", "smoothquant", "fp8", "w4a8", "svdquant"],
)
def test_the_values_compute_what_modelopt_computes(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    model, path = quantized(tmp_path, name, **changes)
    values, x = read_modelopt(path), calls()[0]
    assert set(values) == {"first", "second"}
    with torch.no_grad():
        hidden = recomputed(values["first"], model.first.bias, x)
        y = recomputed(values["second"], model.second.bias, functional.gelu(hidden))
        expected, float_y = model(x), Two()(x)
    assert (y - expected).norm() < 2e-3 * expected.norm(), "a code may flip by rounding, no more"
    assert (float_y - expected).norm() > 4e-3 * expected.norm(), "quantization must show, or the line above proves nothing"


def test_int8_amax_is_our_statistic(tmp_path: Path) -> None:
    _, path = quantized(tmp_path, "INT8_DEFAULT_CFG")
    original, ours = Two(), ranges(Two())
    for name, values in read_modelopt(path).items():
        assert values.inputs is not None and values.inputs.format == "int8" and values.inputs.amax is not None
        torch.testing.assert_close(values.inputs.amax, ours[name].amax(), rtol=0, atol=0)
        (weights,) = values.weights
        torch.testing.assert_close(weights.amax, original.get_submodule(name).weight.abs().amax(1), rtol=0, atol=0)
        assert values.pre_quant_scale is None and values.low_rank is None


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_smoothquant_is_its_formula_on_our_statistics(tmp_path: Path, alpha: float) -> None:
    _, path = quantized(tmp_path, "INT8_SMOOTHQUANT_CFG", algorithm={"method": "smoothquant", "alpha": alpha})
    original, ours = Two(), ranges(Two())
    for name, values in read_modelopt(path).items():
        weight = original.get_submodule(name).weight.detach()
        expected = weight.abs().amax(0) ** (1 - alpha) / ours[name] ** alpha
        assert values.pre_quant_scale is not None and values.inputs is not None
        torch.testing.assert_close(values.pre_quant_scale, expected)
        torch.testing.assert_close(values.inputs.amax, (ours[name] * expected).amax())
        torch.testing.assert_close(values.original_weight(), weight)


def test_svdquant_gives_back_the_weight(tmp_path: Path) -> None:
    _, path = quantized(tmp_path, "INT8_DEFAULT_CFG", algorithm={"method": "svdquant", "lowrank": 4})
    for name, values in read_modelopt(path).items():
        weight = Two().get_submodule(name).weight.detach()
        assert values.low_rank is not None
        down, up = values.low_rank
        assert down.shape == (4, weight.shape[1]) and up.shape == (weight.shape[0], 4)
        torch.testing.assert_close(values.original_weight(), weight, rtol=1e-4, atol=1e-5)


def test_cut_blocks_have_a_scale_each(tmp_path: Path) -> None:
    _, path = quantized(tmp_path, "W4A8_AWQ_BETA_CFG", quant_cfg=BLOCKS)
    coarse, fine = read_modelopt(path)["first"].weights
    assert coarse.format == "int4" and coarse.block == 16 and coarse.amax is not None and coarse.amax.shape == (32, 2)
    assert fine.format == "e4m3" and fine.amax is not None and fine.amax.shape == ()


def test_layers_left_alone_are_left_out(tmp_path: Path) -> None:
    rules = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "first.weight_quantizer", "cfg": {"num_bits": 8, "axis": 0}},
    ]
    _, path = quantized(tmp_path, "INT8_DEFAULT_CFG", quant_cfg=rules)
    (values,) = read_modelopt(path).values()
    assert values.inputs is None


def saved(folder: Path, weight_amax: torch.Tensor, **settings: Any) -> Path:
    """A file as ModelOpt writes it, made by hand: one linear [4, 8]; runs without ModelOpt."""
    plain = {"_disabled": False, "_num_bits": 8, "_axis": 0, "_block_sizes": None, "_dynamic": False, "_fake_quant": True, "backend": None}
    state = {
        "a.weight_quantizer": plain | settings,
        "a.input_quantizer": plain | {"_axis": None},
        "a.output_quantizer": plain | {"_disabled": True},
    }
    tensors = {"a.weight": torch.ones(4, 8), "a.weight_quantizer._amax": weight_amax, "a.input_quantizer._amax": torch.tensor(2.0)}
    modes = [("quantize", {"config": {}, "metadata": {"quantizer_state": state}})]
    path = folder / "hand.pth"
    torch.save({"modelopt_state": {"modelopt_state_dict": modes, "modelopt_version": "0.47.0"}, "model_state_dict": tensors}, path)
    return path


def test_a_file_is_read_without_modelopt(tmp_path: Path) -> None:
    (values,) = read_modelopt(saved(tmp_path, torch.full((4, 1), 3.0))).values()
    assert values.weights[0].amax is not None and values.weights[0].amax.tolist() == [3.0] * 4
    assert values.inputs is not None and values.inputs.amax == 2.0


def test_quantizers_of_something_else_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path, torch.ones(4))
    assert unread_quantizers(path) == ()
    document = torch.load(path, weights_only=False)
    state = document["modelopt_state"]["modelopt_state_dict"][0][1]["metadata"]["quantizer_state"]
    state |= {
        "norm.input_quantizer": {"_disabled": False},
        "b.input_quantizer": {"_disabled": True},
        "attn.q_bmm_quantizer": {"_disabled": False},
    }
    torch.save(document, path)
    assert unread_quantizers(path) == ("norm.input_quantizer", "attn.q_bmm_quantizer")


def test_a_kernel_in_blocks_is_left_out_and_named(tmp_path: Path) -> None:
    path = saved(tmp_path, torch.ones(4))
    document = torch.load(path, weights_only=False)
    state = document["modelopt_state"]["modelopt_state_dict"][0][1]["metadata"]["quantizer_state"]
    blocks = {**state["a.weight_quantizer"], "_num_bits": 4, "_axis": None, "_block_sizes": {-1: 128, "type": "static"}}
    state |= {"conv.weight_quantizer": blocks, "conv.input_quantizer": state["a.input_quantizer"]}
    document["model_state_dict"] |= {"conv.weight": torch.ones(4, 3, 2, 2), "conv.weight_quantizer._amax": torch.ones(24, 1)}
    torch.save(document, path)
    assert set(read_modelopt(path)) == {"a"}
    assert unread_quantizers(path) == ("conv.weight_quantizer", "conv.input_quantizer")


def test_two_level_formats_keep_their_global_amax(tmp_path: Path) -> None:
    blocks = {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}
    path = saved(tmp_path, torch.tensor(5.0), _num_bits=(2, 1), _axis=None, _block_sizes=blocks)
    (quantizer,) = read_modelopt(path)["a"].weights
    assert (quantizer.format, quantizer.block, quantizer.micro) == ("e2m1", 16, "nvfp4")
    assert quantizer.amax is not None and quantizer.amax == 5.0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"_num_bits": 12}, "num_bits 12"),
        ({"_num_bits": (4, 3), "_block_sizes": {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}}, "scale_bits"),
        ({"_block_sizes": {-1: 128, -2: 128}}, "-2: 128"),
        ({"_axis": 1}, "axis 1"),
        ({"_rotate": True}, "rotate True"),
        ({"_bias": {-1: None}}, "bias"),
        ({"_dynamic": True}, "dynamic True"),
        ({"backend": "mine"}, "backend mine"),
    ],
)
def test_an_unknown_quantizer_is_named(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=r"a\.weight_quantizer: expected a quantizer that dexport knows") as caught:
        read_modelopt(saved(tmp_path, torch.ones(4, 1), **settings))
    assert named in str(caught.value)


def test_an_input_with_a_narrow_range_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, torch.ones(4))
    document = torch.load(path, weights_only=False)
    document["modelopt_state"]["modelopt_state_dict"][0][1]["metadata"]["quantizer_state"]["a.input_quantizer"]["_narrow_range"] = True
    torch.save(document, path)
    with pytest.raises(UserError, match=r"a\.input_quantizer: expected a quantizer that dexport knows, got a narrow range"):
        read_modelopt(path)


@pytest.mark.parametrize("amax", [torch.tensor([1.0, float("nan"), 1.0, 1.0]), torch.tensor(float("inf")), torch.tensor(-1.0)])
def test_a_calibration_that_went_wrong_is_refused(tmp_path: Path, amax: torch.Tensor) -> None:
    with pytest.raises(UserError, match="a: amax 0 of the weight: expected finite"):
        read_modelopt(saved(tmp_path, amax))


def test_an_amax_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"amax of shape \[3\] for a weight of shape \[4, 8\]"):
        read_modelopt(saved(tmp_path, torch.ones(3)))


def test_what_modelopt_did_not_write_is_refused(tmp_path: Path) -> None:
    plain, text = tmp_path / "plain.pth", tmp_path / "text.pth"
    torch.save({"weight": torch.ones(2)}, plain)
    text.write_text("hello")
    for path, got in ((plain, "something else"), (text, "something else"), (tmp_path / "none.pth", "no such file")):
        with pytest.raises(UserError, match=f"expected a checkpoint of ModelOpt, got {got}"):
            read_modelopt(path)
    with pytest.raises(UserError, match="expected quantized weights, got none"):
        read_modelopt(saved(tmp_path, torch.ones(4), _disabled=True))


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    torch.save({"modelopt_state": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(UserError, match="expected a checkpoint of ModelOpt"):
        read_modelopt(tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


def exported(folder: Path, algorithm: str = "W8A8_SQ_PER_CHANNEL", method: str = "modelopt") -> Path:
    """A directory as export_hf_checkpoint writes it: one linear [4, 8]."""
    about = {"quantization_config": {"quant_algo": algorithm, "quant_method": method}}
    (folder / "config.json").write_text(json.dumps(about))
    tensors = {
        "a.weight": torch.full((4, 8), 100, dtype=torch.int8),
        "a.weight_scale": torch.tensor([0.1, 0.2, 0.3, 0.4]),
        "a.input_scale": torch.tensor(0.5),
        "a.pre_quant_scale": torch.full((8,), 2.0),
        "b.weight": torch.ones(2, 2),
    }
    safetensors.torch.save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


def test_an_exported_directory_is_decoded(tmp_path: Path) -> None:
    found = read_modelopt(exported(tmp_path))
    assert set(found) == {"a"}
    values = found["a"]
    torch.testing.assert_close(values.weight[:, 0], torch.tensor([10.0, 20.0, 30.0, 40.0]))
    torch.testing.assert_close(values.original_weight()[:, 0], torch.tensor([20.0, 40.0, 60.0, 80.0]))
    assert values.inputs is not None and values.inputs.amax == 63.5
    torch.testing.assert_close(values.weights[0].amax, torch.tensor([12.7, 25.4, 38.1, 50.8]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"algorithm": "W4A16_AWQ"}, "got W4A16_AWQ"), ({"method": "gptq"}, "got quant_method gptq")],
)
def test_other_exported_directories_are_refused(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_modelopt(exported(tmp_path, **changes))


def test_a_directory_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"got no config\.json with a quantization_config"):
        read_modelopt(tmp_path)
