"""Reads checkpoints that NVIDIA's ModelOpt quantized, as plain values per site; ModelOpt itself is not needed.

Two layouts are understood: the file of `modelopt.torch.opt.save(module, path)`, and the directory of `export_hf_checkpoint`, where weights
are codes already (its packed INT4 and NVFP4 layouts are refused). Nothing is executed that a file brings along.

Notation: O outputs, I inputs, r rank. ModelOpt computes, with p the pre-quant scale and L the low-rank branch,

    y = Qx(x p) Qw(weight)^T + (x p) down^T up^T + bias        original weight = (weight + up down) p

where Q(v) = amax/m * round(v m / amax) with m the format's largest number. SmoothQuant (arXiv 2211.10438, equation 4) appears there as
p = amax_w^(1-a) / amax_x^a per input channel, a = 1 by default; SVDQuant (arXiv 2411.05007) as one search for p, then one SVD.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch

from dexport.errors import UserError

_FIX = "quantize with ModelOpt and write it with modelopt.torch.opt.save"
_EXPORTED = {"W8A8_SQ_PER_CHANNEL": ("int8", 127.0), "FP8": ("e4m3", 448.0)}
"""quant_algo of an exported directory -> format and its largest number."""
_PARTS = ("weight", "weight_scale", "input_scale", "pre_quant_scale", "svdquant_lora_a", "svdquant_lora_b")
"""Tensors of an exported layer that are read."""
_PLAIN = {"_rotate": False, "_unsigned": False, "_bias": None, "_fake_quant": True, "_use_constant_amax": False}
"""Settings of a quantizer that must have these values: others mean an arithmetic that the values below cannot say."""


@dataclass(frozen=True)
class Quantizer:
    """Rounding to a format.

    Attributes:
        format: "int8", "int4", "e4m3", "e2m1", ... (plugins/formats.py).
        amax: largest magnitude that the format's largest number stands for, float32: [] per tensor, [O] per output channel,
            [O, I/block] per block (the last block may be cut short by I). None where it is found at run time.
        block: neighbours along I that share a scale, 0 if not in blocks.
        micro: "nvfp4" where the scales of blocks are found at run time and rounded to e4m3 below `amax`, else "".
    """

    format: str
    amax: torch.Tensor | None
    block: int = 0
    micro: str = ""


@dataclass(frozen=True)
class SiteValues:
    """What ModelOpt found for one linear or convolution.

    Attributes:
        weight: [O, I, ...] as stored: multiplied by 1 / pre_quant_scale, the low-rank part taken out; decoded if stored as codes.
        weights: rounding of `weight`, in order; two stages where ModelOpt rounds twice (W4A8: int4 in blocks, then e4m3).
        inputs: rounding of the input after multiplication; None if inputs are not quantized.
        pre_quant_scale: [I], multiplies the input; None if there is none.
        low_rank: down [r, I] and up [O, r] of the branch beside the quantized weight; None if there is none.
    """

    weight: torch.Tensor
    weights: tuple[Quantizer, ...]
    inputs: Quantizer | None
    pre_quant_scale: torch.Tensor | None
    low_rank: tuple[torch.Tensor, torch.Tensor] | None

    def original_weight(self) -> torch.Tensor:
        """The weight [O, I, ...] before smoothing and decomposition, up to rounding."""
        weight = self.weight if self.low_rank is None else self.weight + self.low_rank[1] @ self.low_rank[0]
        return weight if self.pre_quant_scale is None else weight * self.pre_quant_scale


def read_modelopt(path: Path) -> dict[str, SiteValues]:
    """Site name -> values, for every layer whose weight is quantized. A site is called as its module, which is dexport's name of it too.

    Kernels that are rounded in blocks are left out, see `unread_quantizers`.

    Raises:
        UserError: no such file, not written by ModelOpt, a quantizer of another kind (named), an amax that is not finite.
    """
    found = _exported(path) if path.is_dir() else _saved(path)
    if not found:
        raise UserError(str(path), expected="quantized weights", got="none", fix=_FIX)
    for site, values in found.items():
        _check_finite(f"{path}: {site}", values)
    return found


def unread_quantizers(path: Path) -> tuple[str, ...]:
    """Enabled quantizers that belong to no site: ModelOpt also rounds inputs of layer norms, kernels in blocks, and attention if told to.

    An exported directory names none. Raises as `read_modelopt`.
    """
    if path.is_dir():
        return ()
    settings, tensors = _document(path)
    sites = {name for name in _names(settings) if (stages := _stages(name, settings)) and not _in_blocks(name, stages, settings, tensors)}
    enabled = (name for name, state in settings.items() if not state.get("_disabled", True))
    return tuple(n for n in enabled if n.partition(".weight_quantizer")[0].removesuffix(".input_quantizer") not in sites)


def _names(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Modules that have a quantizer for their weight."""
    return [key.removesuffix(".weight_quantizer") for key in settings if key.endswith(".weight_quantizer")]


def _stages(name: str, settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The quantizers of a module's weight, in order; none if they are all off."""
    quantizer = f"{name}.weight_quantizer"
    stages = [f"{quantizer}.{i}" for i in range(settings[quantizer].get("num_quantizers", 0))] or [quantizer]
    return [] if all(settings[stage]["_disabled"] for stage in stages) else stages


def _in_blocks(name: str, stages: list[str], settings: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the weight is a kernel that is rounded in blocks: ModelOpt's run along its last axis, which is no axis of channels."""
    weight = tensors.get(f"{name}.weight")
    return weight is not None and weight.dim() > 2 and any(settings[stage].get("_block_sizes") for stage in stages)


def _document(path: Path) -> tuple[Mapping[str, Mapping[str, Any]], Mapping[str, torch.Tensor]]:
    """Settings by quantizer, and tensors, of the file of modelopt.torch.opt.save."""
    try:
        with torch.serialization.safe_globals([slice]):  # a quantizer of cut blocks keeps one
            document = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        modes = document["modelopt_state"]["modelopt_state_dict"]
        tensors: Mapping[str, torch.Tensor] = document["model_state_dict"]
        # Every mode keeps the settings as they were after it: the last ones hold.
        settings: Mapping[str, Mapping[str, Any]] = [
            m["metadata"]["quantizer_state"] for _, m in modes if "quantizer_state" in m["metadata"]
        ][-1]
    except FileNotFoundError as error:
        raise UserError(str(path), expected="a checkpoint of ModelOpt", got="no such file", fix="correct the path") from error
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, IndexError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(str(path), expected="a checkpoint of ModelOpt", got="something else", fix=_FIX) from error
    return settings, tensors


def _saved(path: Path) -> dict[str, SiteValues]:
    """The sites of the file of modelopt.torch.opt.save."""
    settings, tensors = _document(path)
    found = {}
    for name in _names(settings):
        stages = _stages(name, settings)
        if stages and not _in_blocks(name, stages, settings, tensors):
            found[name] = _site(f"{path}: {name}", name, stages, settings, tensors)
    return found


def _site(
    where: str, name: str, stages: list[str], settings: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, torch.Tensor]
) -> SiteValues:
    """The values of one module."""
    quantizer = f"{name}.weight_quantizer"
    if f"{name}.weight" not in tensors:
        raise UserError(where, expected="its weight in the checkpoint", got="none", fix=_FIX)
    weight = tensors[f"{name}.weight"]
    if not weight.is_floating_point() or weight.dim() < 2:
        got = f"{weight.dtype} {list(weight.shape)}"
        raise UserError(where, expected="a weight that is not packed", got=got, fix="save before modelopt's compress")
    if not settings.get(f"{name}.output_quantizer", {"_disabled": True})["_disabled"]:
        raise UserError(
            f"{where}.output_quantizer", expected="no rounding of outputs", got="an enabled quantizer", fix="disable it in ModelOpt"
        )
    inputs = f"{name}.input_quantizer"
    weights = [_quantizer(f"{where}{s.removeprefix(name)}", settings[s], tensors.get(f"{s}._amax"), weight.shape) for s in stages]
    enabled = not settings[inputs]["_disabled"]
    return SiteValues(
        weight=weight,
        weights=tuple(weights),
        inputs=_quantizer(f"{where}.input_quantizer", settings[inputs], tensors.get(f"{inputs}._amax"), None) if enabled else None,
        pre_quant_scale=_flat(tensors.get(f"{inputs}._pre_quant_scale")),
        low_rank=_low_rank(where, tensors.get(f"{quantizer}._svdquant_lora_a"), tensors.get(f"{quantizer}._svdquant_lora_b")),
    )


def _quantizer(where: str, settings: Mapping[str, Any], amax: torch.Tensor | None, weight: torch.Size | None) -> Quantizer:
    """One quantizer of a weight of a shape, or of an input."""
    number, blocks = _format(settings["_num_bits"]), dict(settings["_block_sizes"] or {})
    for setting, plain in _PLAIN.items():
        if settings.get(setting, plain) not in (plain, None):
            raise _unknown(where, f"{setting.strip('_')} {settings[setting]}")
    if number is None or settings.get("backend"):
        raise _unknown(where, f"num_bits {settings['_num_bits']}, backend {settings.get('backend')}")
    kind, scale_bits, block = blocks.pop("type", "static"), blocks.pop("scale_bits", None), blocks.pop(-1, 0) or 0
    micro = {((2, 1), 16, (4, 3)): "nvfp4", ((2, 1), 32, (8, 0)): "mxfp4"}.get((_pair(settings["_num_bits"]), block, _pair(scale_bits)))
    if micro and kind == "dynamic" and not blocks:
        return Quantizer(number, None if amax is None else amax.reshape(()), block, micro)
    axes = settings["_axis"]
    if weight is None and settings.get("_narrow_range"):  # a weight never gets below the least number but one
        raise _unknown(where, "a narrow range")
    if blocks or scale_bits is not None or kind != "static" or settings["_dynamic"] or axes not in (None, 0, (0,), [0]):
        raise _unknown(where, f"blocks {settings['_block_sizes']}, axis {axes}, dynamic {settings['_dynamic']}")
    if amax is None:
        raise UserError(where, expected="an amax", got="none", fix="calibrate it in ModelOpt")
    if weight is None and amax.numel() > 1:
        raise _unknown(where, f"amax of shape {list(amax.shape)} for an input")
    return Quantizer(number, _shaped(where, amax, weight, block), block)


def _shaped(where: str, amax: torch.Tensor, weight: torch.Size | None, block: int) -> torch.Tensor:
    """An amax as `Quantizer` has it: [], [O] or [O, blocks]."""
    if amax.numel() == 1:
        return amax.reshape(())
    assert weight is not None  # an input's amax has one element
    columns = -(-weight[1] // block) if block else 1
    if amax.numel() != weight[0] * columns:
        raise _unknown(where, f"amax of shape {list(amax.shape)} for a weight of shape {list(weight)}")
    return amax.reshape(weight[0], columns) if block else amax.reshape(-1)


def _format(bits: int | tuple[int, int]) -> str | None:
    """The name of a format by ModelOpt's num_bits, None if there is none."""
    if isinstance(bits, int):
        return f"int{bits}" if 2 <= bits <= 8 else None
    return f"e{bits[0]}m{bits[1]}" if 1 <= bits[0] <= 5 and bits[1] >= 0 and sum(bits) <= 7 else None


def _pair(bits: Any) -> Any:
    return tuple(bits) if isinstance(bits, list) else bits


def _flat(vector: torch.Tensor | None) -> torch.Tensor | None:
    return None if vector is None else vector.reshape(-1)


def _low_rank(where: str, down: torch.Tensor | None, up: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    if down is None and up is None:
        return None
    if down is None or up is None or down.shape[0] != up.shape[1]:
        raise UserError(where, expected="both factors of its low-rank branch, of one rank", got="something else", fix=_FIX)
    return down, up


def _unknown(where: str, got: str) -> UserError:
    return UserError(
        where, expected="a quantizer that dexport knows", got=got, fix="choose another ModelOpt configuration, or a recipe of dexport"
    )


def _exported(folder: Path) -> dict[str, SiteValues]:
    """The directory of export_hf_checkpoint: codes with scales."""
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
        algorithm, method = str(about["quant_algo"]), about["quant_method"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        got = "no config.json with a quantization_config"
        raise UserError(str(folder), expected="a checkpoint exported by ModelOpt", got=got, fix=_FIX) from error
    if method != "modelopt":
        raise UserError(str(folder), expected="a checkpoint exported by ModelOpt", got=f"quant_method {method}", fix=_FIX)
    if algorithm not in _EXPORTED:
        known = " or ".join(_EXPORTED)
        raise UserError(str(folder), expected=f"quant_algo {known}", got=algorithm, fix="give the file of modelopt.torch.opt.save instead")
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(file, "pt") as tensors:
            names = set(tensors.keys())
            for name in sorted(n.removesuffix(".weight_scale") for n in names if n.endswith(".weight_scale")):
                parts = {part: tensors.get_tensor(f"{name}.{part}") for part in _PARTS if f"{name}.{part}" in names}
                found[name] = _decoded(f"{file}: {name}", algorithm, parts)
    return found


def _decoded(where: str, algorithm: str, parts: Mapping[str, torch.Tensor]) -> SiteValues:
    """The values of one exported layer: weights decoded, scales turned back into amaxes."""
    number, largest = _EXPORTED[algorithm]
    codes, scale, inputs = parts.get("weight"), parts["weight_scale"], parts.get("input_scale")
    if codes is None or scale.numel() not in (1, codes.shape[0]):
        raise UserError(where, expected="codes and a scale per tensor or output channel", got="something else", fix=_FIX)
    scale = scale.float().reshape(()) if scale.numel() == 1 else scale.float().reshape(-1)
    spread = scale if scale.dim() == 0 else scale.reshape(-1, *[1] * (codes.dim() - 1))
    return SiteValues(
        weight=codes.float() * spread,
        weights=(Quantizer(number, scale * largest),),
        inputs=None if inputs is None else Quantizer(number, inputs.float().reshape(()) * largest),
        pre_quant_scale=_flat(parts.get("pre_quant_scale")),
        low_rank=_low_rank(where, parts.get("svdquant_lora_a"), parts.get("svdquant_lora_b")),
    )


def _check_finite(where: str, values: SiteValues) -> None:
    """Refuses a calibration that went wrong, before its numbers go anywhere."""
    named = {f"amax {i} of the weight": quantizer.amax for i, quantizer in enumerate(values.weights)}
    named |= {"amax of the input": values.inputs.amax if values.inputs else None, "pre_quant_scale": values.pre_quant_scale}
    for name, tensor in named.items():
        if tensor is not None and not bool(torch.isfinite(tensor).all() and (tensor >= 0).all()):
            raise UserError(
                f"{where}: {name}",
                expected="finite numbers that are not negative",
                got="NaN, infinity or a negative one",
                fix="calibrate again",
            )
