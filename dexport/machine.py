"""What this machine is: processor, memory, disk, GPU. Read from the operating system, without packages or subprocesses."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from dexport.errors import DexportError
from dexport.runtime.backends.cuda_driver import CudaDevice

_FAST_INSTRUCTIONS = ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16", "sve")
"""Instruction sets that decide how fast int8 and bf16 are, as /proc/cpuinfo spells them."""


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU, or why there is none.

    Attributes:
        name: as the driver says; empty where there is none.
        sm: compute capability times ten, None where there is none.
        reason: why it cannot be used; empty where it can.
    """

    name: str
    sm: int | None
    reason: str


@dataclass(frozen=True)
class Machine:
    """Facts about this machine; sizes in bytes.

    Attributes:
        system: operating system and architecture.
        processor: its name.
        cores: those this process may use.
        instructions: sets that matter for speed.
        memory: all of it; 0 where the system does not say.
        disk_free: in the current folder.
        jetson: the board's name, empty on other machines.
    """

    system: str
    processor: str
    cores: int
    instructions: tuple[str, ...]
    memory: int
    disk_free: int
    gpu: Gpu
    jetson: str


def this_machine() -> Machine:
    """Looks at the machine."""
    name, flags = _processor(_text(Path("/proc/cpuinfo")))
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=name or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        instructions=tuple(one for one in _FAST_INSTRUCTIONS if one in flags),
        memory=_memory(),
        disk_free=shutil.disk_usage(Path.cwd()).free,
        gpu=_gpu(),
        jetson=_jetson(_text(Path("/proc/device-tree/model"))),
    )


def _processor(cpuinfo: str) -> tuple[str, frozenset[str]]:
    """Name and flags of the first processor in /proc/cpuinfo; ARM kernels call the flags "Features" and give no name."""
    entries: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())
    return entries.get("model name", ""), frozenset((entries.get("flags") or entries.get("Features") or "").split())


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _gpu() -> Gpu:
    names = [line.partition(":")[2].strip() for line in _gpu_information().splitlines() if line.startswith("Model:")]
    try:
        device = CudaDevice()
        sm = device.sm
        device.close()
    except DexportError as error:
        return Gpu(names[0] if names else "", None, error.got)
    return Gpu(names[0] if names else "NVIDIA GPU", sm, "")


def _gpu_information() -> str:
    return "\n".join(_text(path) for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")))


def _jetson(model: str) -> str:
    """The board's name from the device tree, if it is one of NVIDIA's."""
    name = model.rstrip("\0\n")
    return name if "NVIDIA" in name else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
