"""TensorRT engines with trtexec, the program that comes with TensorRT: on a Jetson it is in the package libnvinfer-bin.

trtexec and not the Python package: the same commands stand in the kit's own `kit/build.sh`, for devices without dexport.

What was executed and what was not: every flag used here was read in samples/common/sampleOptions.cpp of TensorRT 10.3, 10.13,
10.16 and 11.1 (all of them have all; 11 accepts ``--stronglyTyped`` as a no-op). The form of the layer information was taken
from files that TensorRT 8.4 to 10.9 wrote, as published with their users' issues and tests. Nothing here has run on a Jetson.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dexport.errors import Failure, UserError
from dexport.runtime.builders.builder import Layer, Profile
from dexport.runtime.device import Device
from dexport.targets.target import Target
from dexport.targets.tensorrt import dotted

_WORKSPACE_SHARE = 0.25
_MEMORY_BASE, _MEMORY_SHARE = 1 << 30, 2.5
"""Memory while building: a multiple of the weights; a rule of thumb (2 to 3), not a measurement."""
_USUAL_PLACE = "/usr/src/tensorrt/bin/trtexec"
_BANNER = re.compile(r"TensorRT v(\d+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_SECONDS = 60.0
_MULTIPLIES = re.compile(r"gemm|conv|matrix|matmul|fully|mha|attention", re.IGNORECASE)
_PRECISIONS: tuple[tuple[str, str], ...] = (  # spelling in "Format/Datatype" -> ours; the first that fits
    (r"\bBF16\b|BFloat16", "bf16"),
    (r"\bFP16\b|\bHalf\b", "fp16"),
    (r"\bFP32\b|\bFloat\b", "fp32"),
    (r"\bINT8\b", "int8"),
    (r"\bFP8\b|E4M3", "fp8"),
    (r"\bFP4\b|E2M1", "nvfp4"),
    (r"\bINT4\b", "int4"),
)


@dataclass(frozen=True)
class TensorRTBuilder:
    """Makes TensorRT engines for a Jetson; implements `builder.Builder`.

    Attributes:
        target: the Jetson that the kit was made for.
        trtexec: the program.
        timing_cache: file in which TensorRT keeps how fast its kernels were, for later builds on this device.
    """

    target: Target
    trtexec: str
    timing_cache: Path
    tools: Mapping[str, str]
    format: str = field(default="tensorrt", init=False)
    native: bool = field(default=True, init=False)

    def check(self, device: Device) -> None:
        """Refuses another architecture, JetPack, GPU or TensorRT, all of them in one line."""
        target, jetpack = self.target, self.target.jetpack
        assert jetpack is not None and target.tensorrt is not None
        release = f"Jetson Linux {jetpack.l4t.split('.')[0]} (JetPack {dotted(jetpack.version)})"
        facts = [
            (device.machine == "aarch64", "aarch64", device.machine),
            (device.jetson_linux.split(".")[0] == jetpack.l4t.split(".")[0], release, f"Jetson Linux {device.jetson_linux or 'none'}"),
            (device.sm == target.sm, f"SM {target.compute_capability}", "no GPU" if device.sm is None else f"SM {device.sm / 10:.1f}"),
            (
                _same_release(self.tools["tensorrt"], target),
                f"TensorRT {dotted(target.tensorrt[:2])}",
                f"TensorRT {self.tools['tensorrt'] or 'none'}",
            ),
        ]
        if wrong := [(wanted, found) for right, wanted, found in facts if not right]:
            fix = "finalize it on that device, or build a kit for this one (`dexport targets` lists all)"
            expected = f"a {target.name} with {', '.join(wanted for wanted, _ in wrong)}"
            raise UserError("this device", expected=expected, got=", ".join(found for _, found in wrong), fix=fix)
        if not self.trtexec:
            raise UserError(
                "trtexec", expected=_USUAL_PLACE, got="no such program", fix="run: sudo apt-get install nvidia-jetpack, or set TRTEXEC"
            )

    def options(self, profiles: Sequence[Profile]) -> tuple[str, ...]:
        """See `trtexec_flags`."""
        return trtexec_flags(profiles, self.target)

    def command(self, onnx: Path, folder: Path, name: str, options: Sequence[str]) -> list[str]:
        """One run of trtexec."""
        self.timing_cache.parent.mkdir(parents=True, exist_ok=True)
        paths = [
            f"--onnx={onnx}",
            f"--saveEngine={folder / self.files(name)[0]}",
            f"--exportLayerInfo={folder / self.layer_files(name)[0]}",
        ]
        return [self.trtexec, *paths, f"--timingCacheFile={self.timing_cache}", *options]

    def files(self, name: str) -> tuple[str, ...]:
        """The engine."""
        return (f"{name}.engine",)

    def layer_files(self, name: str) -> tuple[str, ...]:
        """What trtexec's inspector writes."""
        return (f"{name}.layers.json",)

    def layers(self, folder: Path, name: str) -> list[Layer]:
        """What trtexec's inspector says of the engine."""
        return layers_from_json((folder / self.layer_files(name)[0]).read_bytes(), name)

    def memory_needed(self, weight_bytes: int) -> int:
        """The model, its weights while kernels are tried, and the engine."""
        return memory_needed(weight_bytes)


def tensorrt_builder(target: Target, device: Device, cache: Path) -> TensorRTBuilder:
    """The builder with what this machine has; `check` says what is wrong with it.

    Args:
        cache: folder for timing caches, one per board, GPU, power mode and TensorRT: kernels are chosen at the clocks of a mode.
    """
    trtexec = find_trtexec()
    version = trtexec_version(trtexec) if trtexec else ""
    place = "-".join((device.board or device.machine, f"sm{device.sm}", device.power_mode or "mode", f"tensorrt-{version}"))
    tools = {"tensorrt": version, "gpu": f"sm{device.sm}", "power_mode": device.power_mode}
    return TensorRTBuilder(target, trtexec, cache / f"{re.sub(r'[^A-Za-z0-9.]+', '-', place)}.timing", tools)


def memory_needed(weight_bytes: int) -> int:
    """Bytes of free memory that building a model takes, from the size of its weights."""
    return _MEMORY_BASE + int(_MEMORY_SHARE * weight_bytes)


def find_trtexec() -> str:
    """$TRTEXEC, or the one in PATH, or where the package puts it; empty if it is nowhere."""
    return os.environ.get("TRTEXEC") or shutil.which("trtexec") or (_USUAL_PLACE if os.access(_USUAL_PLACE, os.X_OK) else "")


def trtexec_version(trtexec: str) -> str:
    """ "10.3.0", from the first line that trtexec prints: "[TensorRT v100300]"; empty if it does not say."""
    try:
        done = subprocess.run(
            [trtexec, "--help"], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    banner = _BANNER.search(done.stdout + done.stderr)
    if banner is None:
        return ""
    code = int(banner[1])
    return f"{code // 10000}.{code // 100 % 100}.{code % 100}"


def _same_release(version: str, target: Target) -> bool:
    """Major and minor decide: a JetPack gets fixes of its TensorRT."""
    assert target.tensorrt is not None
    return version.split(".")[:2] == [str(part) for part in target.tensorrt[:2]]


def trtexec_flags(profiles: Sequence[Profile], target: Target) -> tuple[str, ...]:
    """The part of the trtexec command that depends on the model: everything but the names of its files.

    A profile's three shape flags directly follow its ``--profile`` flag, because trtexec assigns them by position.
    """
    flags = ["--stronglyTyped", "--skipInference", "--profilingVerbosity=detailed"]
    if target.memory_available_gib is not None:
        flags.append(f"--memPoolSize=workspace:{int(target.memory_available_gib * 1024 * _WORKSPACE_SHARE)}M")
    for index, profile in enumerate(profiles):
        flags.append(f"--profile={index}")
        for position, flag in enumerate(("minShapes", "optShapes", "maxShapes")):
            flags.append(f"--{flag}=" + ",".join(_shape(name, shapes[position]) for name, shapes in profile.items()))
    return tuple(flags)


def plugin_flags(libraries: Sequence[Path]) -> tuple[str, ...]:
    """The flags that make trtexec load libraries of plugins before it reads a model."""
    return tuple(f"--dynamicPlugins={library}" for library in libraries)


def _shape(name: str, dims: tuple[int, ...]) -> str:
    return f"{name}:{'x'.join(str(dim) for dim in dims)}"


def layers_from_json(data: bytes, name: str) -> list[Layer]:
    """The layers in a file of ``--exportLayerInfo`` of an engine built with ``--profilingVerbosity=detailed``.

    Raises:
        Failure: it is no such file.
    """
    try:
        return [_layer(entry) for entry in json.loads(data)["Layers"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise Failure(f"{name}: layers", expected="what --exportLayerInfo writes", got=got, fix="look at the file and report it") from error


def _layer(entry: Any) -> Layer:
    tactic = str(entry.get("TacticName", ""))
    kind = str(entry.get("LayerType", ""))
    types = [str(tensor.get("Format/Datatype", tensor.get("Datatype", ""))) for tensor in entry.get("Inputs", ())]
    nodes = frozenset(_NODE.findall(str(entry.get("Metadata", ""))))
    multiplies = _MULTIPLIES.search(f"{kind} {tactic}") is not None
    return Layer(nodes, kind, frozenset(filter(None, map(_precision, types))) | _of_tactic(tactic), multiplies)


def _precision(datatype: str) -> str:
    return next((ours for spelling, ours in _PRECISIONS if re.search(spelling, datatype, re.IGNORECASE)), "")


def _of_tactic(tactic: str) -> frozenset[str]:
    """A kernel that quantizes its own input says so only in its name: "sm80_xmma_gemm_i8f32_i8i32_f32"."""
    return frozenset({"int8"} if re.search(r"_i8\w*_", tactic) else {"fp8"} if "e4m3" in tactic else ())
