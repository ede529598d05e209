"""LoRA files, merged into the weights while they stream.

A weight W becomes W + scale * alpha / rank * up @ down (Hu et al. 2021, arXiv:2106.09685, section 4.1). Each pipeline class of diffusers
knows the dialects that files for it come in (kohya, xlabs, original checkpoints) and translates them to its own names; that translation is
used as it is. What comes out is read here: `<component>.<module>.lora_A.weight`, or `lora.down`, and so on.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dexport.errors import UserError
from dexport.exporter.weights import open_checkpoint, read_header
from dexport.passes.graph import Weight

_log = logging.getLogger(__name__)
_FORM = "<component>.<module>.lora_A.weight and lora_B.weight, or a dialect that diffusers translates for this pipeline"
_KEY = re.compile(
    r"(?P<module>.+?)(?:\.lora_|\.lora\.|\.lora_linear_layer\.|(?P<old>_lora)\.)(?P<side>A|B|down|up)(?:\.default)?\.weight",
)
_OLD_TEXT_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_WRAPPERS = ("model.", "text_model.")  # what captured graphs, and some checkpoints of CLIP, put before a parameter's name


@dataclass(frozen=True)
class LoraFile:
    """What the user asked for: a file and how strongly it applies."""

    path: Path
    scale: float


@dataclass(frozen=True)
class Delta:
    """The change of one weight: factor * up @ down, both flattened to matrices ([out, rank] and [rank, in * kernel])."""

    up: torch.Tensor
    down: torch.Tensor
    factor: float

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """weight + change, in fp32."""
        return weight.float() + self.factor * (self.up.flatten(1).float() @ self.down.flatten(1).float()).reshape(weight.shape)


@dataclass(frozen=True)
class Lora:
    """An opened file: component folder -> name of a weight in it -> change."""

    file: LoraFile
    deltas: Mapping[str, Mapping[str, Delta]]

    def count(self) -> int:
        """How many weights it changes."""
        return sum(len(changes) for changes in self.deltas.values())


def parse_lora(text: str) -> LoraFile:
    """Reads "FILE" or "FILE:SCALE".

    Raises:
        UserError: the scale is not a number, or there is no such file.
    """
    path, colon, number = text.rpartition(":")
    if not colon or Path(text).exists():
        path, number = text, "1"
    try:
        scale = float(number)
    except ValueError as error:
        raise UserError(
            "lora", expected="FILE or FILE:SCALE with a number as scale", got=text, fix="write for example style.safetensors:0.8"
        ) from error
    if not Path(path).is_file() or not path.endswith(".safetensors"):
        got = "another format" if Path(path).is_file() else "no such file"
        raise UserError(f"lora {path}", expected="a .safetensors file", got=got, fix="give the path of a LoRA in safetensors form")
    return LoraFile(Path(path), scale)


def open_lora(file: LoraFile, directory: Path, class_name: str) -> Lora:
    """Reads a LoRA and checks that every tensor of it belongs to a weight of the pipeline.

    Args:
        directory: the pipeline directory.
        class_name: the pipeline's class in diffusers, which knows the file's dialect.

    Raises:
        UserError: unknown keys, a component or weight that the pipeline lacks, shapes that do not fit, or a kind that cannot be merged.
    """
    read_header(file.path)  # names what is wrong with a broken file
    tensors, alphas = _translated(file.path, directory, class_name)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            unknown.append(key)
        else:
            halves.setdefault(_module(match), {})["down" if match["side"] in ("down", "A") else "up"] = tensor
    unknown += [module for module, pair in halves.items() if len(pair) != 2]
    if unknown or not halves:
        raise _misfit(file.path, unknown or ["no tensors"], f"keys like {_FORM}", "convert the file to the diffusers form")
    factors = _factors(file.path, {m: pair["down"].shape[0] for m, pair in halves.items()}, alphas)
    deltas = {m: Delta(pair["up"], pair["down"], file.scale * factors[m]) for m, pair in halves.items()}
    return Lora(file, _placed(file.path, directory, deltas))


def merged(weights: Mapping[str, Weight], folder: str, loras: Sequence[Lora]) -> Mapping[str, Weight]:
    """The weights of a component with the changes of `loras` added, in their order, when they are read.

    Args:
        weights: parameter path (with or without the wrapper's "model.") -> weight.
        folder: the component's folder in the pipeline directory.
    """
    result = dict(weights)
    for lora in loras:
        changes = lora.deltas.get(folder, {})
        hits = [name for name in weights if _plain(name) in changes]
        for name in hits:
            delta, before = changes[_plain(name)], result[name]
            origin = f"{before.origin} + {lora.file.path}:{lora.file.scale:g}"
            result[name] = replace(before, load=_sum(before.load, delta), origin=origin)
        if changes:
            _log.info("%s changes %d of %d weights of %s", lora.file.path.name, len(hits), len(weights), folder)
    return result


def _sum(load: Callable[[], torch.Tensor], delta: Delta) -> Callable[[], torch.Tensor]:
    def changed() -> torch.Tensor:
        weight = load()
        return delta.added_to(weight).to(weight.dtype)

    return changed


def _translated(path: Path, directory: Path, class_name: str) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """(tensors, alphas) with diffusers' names."""
    import diffusers
    from diffusers.configuration_utils import FrozenDict
    from safetensors.torch import load_file

    stored = load_file(path)
    first = list(stored)
    if any("dora_scale" in key or "lora_magnitude_vector" in key for key in stored):
        raise _misfit(path, first, "a plain LoRA", "merge DoRA weights into the pipeline and save it first")
    translate = getattr(getattr(diffusers, class_name), "lora_state_dict", None)
    alphas: dict[str, Any] = {}
    if translate is not None:
        unet = directory / "unet" / "config.json"
        options = {"unet_config": FrozenDict(json.loads(unet.read_text()))} if unet.exists() else {}
        try:
            answer = translate(stored, return_alphas=True, **options)
        except Exception as error:
            raise _misfit(path, first, f"keys like {_FORM}", "convert the file to the diffusers form") from error
        stored, alphas = (answer[0], answer[1] or {}) if isinstance(answer, tuple) else (answer, {})
    for key in [key for key in stored if key.endswith(".alpha")]:
        alphas[key] = stored.pop(key)
    return stored, {_alpha_module(key): float(alpha) for key, alpha in alphas.items()}


def _alpha_module(key: str) -> str:
    """The module that an alpha belongs to; some dialects append ".alpha" to the name of a tensor."""
    name = key.removesuffix(".alpha")
    match = _KEY.fullmatch(name)
    return name.replace(".processor", "") if match is None else _module(match)


def _module(match: re.Match[str]) -> str:
    """Component and module of a key, in today's names."""
    module = match["module"].replace(".processor", "")
    if match["old"] is None:
        return module
    path, _, last = module.rpartition(".")
    if module.startswith("text_encoder"):
        return f"{path}.{_OLD_TEXT_NAMES.get(last, last)}"
    return f"{path}.{'to_out.0' if last == 'to_out' else last}"


def _factors(path: Path, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, float]:
    """alpha / rank per module: from alphas beside the tensors, else from PEFT's configuration in the file's header, else 1."""
    with path.open("rb") as handle:
        header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
    said = json.loads(header.get("__metadata__", {}).get("lora_adapter_metadata", "{}"))
    factors = {}
    for module, rank in ranks.items():
        component, _, inner = module.partition(".")
        alpha = alphas.get(module)
        if alpha is None:
            patterns = said.get(f"{component}.alpha_pattern") or {}
            alpha = next(
                (a for p, a in patterns.items() if inner == p or inner.endswith(f".{p}")), said.get(f"{component}.lora_alpha", rank)
            )
        factors[module] = alpha / (rank**0.5 if said.get(f"{component}.use_rslora") else rank)
    return factors


def _placed(path: Path, directory: Path, deltas: Mapping[str, Delta]) -> dict[str, dict[str, Delta]]:
    """Sorts the changes by component and checks each against the header of the component's checkpoint."""
    placed: dict[str, dict[str, Delta]] = {}
    misfits = []
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for module, delta in deltas.items():
        folder, _, inner = module.partition(".")
        if folder not in shapes:
            known = (directory / folder).is_dir()
            shapes[folder] = {_plain(n): s.shape for n, s in open_checkpoint(directory / folder).items()} if known else {}
        name = _plain(f"{inner}.weight")
        shape = shapes[folder].get(name)
        if shape is None:
            misfits.append(f"{module} (no such weight)")
        elif (delta.up.shape[0], delta.down.flatten(1).shape[1]) != (shape[0], _numel(shape[1:])) or delta.up[
            0
        ].numel() != delta.down.shape[0]:
            misfits.append(f"{module} (weight {list(shape)}, change {list(delta.up.shape)} by {list(delta.down.shape)})")
        else:
            placed.setdefault(folder, {})[name] = delta
    if misfits:
        raise _misfit(path, misfits, f"changes of weights in {directory}", "use a LoRA that was trained for this pipeline")
    return placed


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _numel(shape: Iterable[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _misfit(path: Path, keys: Sequence[str], expected: str, fix: str) -> UserError:
    shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
    return UserError(f"lora {path}", expected=expected, got=shown, fix=fix)
