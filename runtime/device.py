"""What the machine is on which engines are built: enough to refuse a kit for another one, and to say later how an engine came about."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dexport.errors import DexportError
from dexport.runtime.backends.cuda_driver import CudaDevice

_RELEASE = re.compile(r"# R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)")
_MODE = re.compile(r"NV Power Mode: (?:MODE_)?(\S+)")
_SECONDS = 20.0
_MOST_LINES = 64


@dataclass(frozen=True)
class Device:
    """Facts about this machine.

    Attributes:
        machine: architecture, such as "aarch64".
        board: name from the device tree; empty where there is none.
        jetson_linux: version such as "36.4.3"; empty where it is no Jetson.
        sm: compute capability times ten of the first GPU; None without one that works.
        power_mode: what `nvpmodel -q` says, without the MODE_ that some releases put before it; empty without it.
        clocks: lines of `jetson_clocks --show`, or why there are none; empty on machines without the command.
    """

    machine: str
    board: str = ""
    jetson_linux: str = ""
    sm: int | None = None
    power_mode: str = ""
    clocks: tuple[str, ...] = ()


def this_device(root: Path = Path("/")) -> Device:
    """Looks at this machine; `root` is where its /etc and /proc are."""
    release = _RELEASE.search(_text(root / "etc/nv_tegra_release"))
    mode = _MODE.search("\n".join(_output("nvpmodel", "-q")))
    return Device(
        machine=platform.machine(),
        board=_text(root / "proc/device-tree/model").rstrip("\0\n"),
        jetson_linux=f"{release[1]}.{release[2]}" if release else "",
        sm=_sm(),
        power_mode=mode[1] if mode else "",
        clocks=_output("jetson_clocks", "--show"),
    )


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that programs can still get without swapping (MemAvailable); 0 where the system does not say.

    On a Jetson the GPU takes from the same memory.
    """
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _sm() -> int | None:
    try:
        device = CudaDevice()
    except DexportError:
        return None
    try:
        return device.sm
    finally:
        device.close()


def _output(*command: str) -> tuple[str, ...]:
    """Lines that a command prints, errors included; none where it does not exist."""
    if shutil.which(command[0]) is None:
        return ()
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return (str(error),)
    return tuple(line.rstrip() for line in (done.stdout + done.stderr).splitlines() if line.strip())[:_MOST_LINES]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
