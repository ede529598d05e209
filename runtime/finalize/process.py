"""One command in a process of its own: its output in a file, its memory watched, and never longer alive than we are."""

from __future__ import annotations

import ctypes
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dexport.runtime.device import free_memory

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SECONDS_BETWEEN_LOOKS = 0.05
_LAST_WORDS = 3
_PEAK = re.compile(r"^VmHWM:\s*(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Attributes:
        code: exit status; minus the number of the signal that ended it.
        seconds: wall time.
        peak_memory: most bytes that it had in memory at once, but for its last moments (VmHWM, looked at 20 times in a second). What it
            starts itself and GPU memory are not in it.
        least_free: fewest bytes that were free on this machine meanwhile; on a Jetson that includes the GPU's.
    """

    code: int
    seconds: float
    peak_memory: int
    least_free: int

    @property
    def failed(self) -> str:
        """How it ended, in words; empty where it went well."""
        if self.code >= 0:
            return f"exit status {self.code}" if self.code else ""
        hint = ", as the system does where memory runs out" if -self.code == signal.SIGKILL else ""
        return f"{signal.Signals(-self.code).name}{hint}"


def run_watched(command: Sequence[str], log: Path) -> Usage:
    """Runs a command to its end; its output goes to `log`. It is killed if we are interrupted or die.

    Raises:
        OSError: there is no such program, or the log cannot be written.
    """
    started, least_free, peak = time.monotonic(), free_memory(), 0
    # Runs in the new process, where nothing may be looked up any more: the kernel kills it when its parent ends, however it ends.
    die_with_parent = partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=die_with_parent)
    try:
        while process.poll() is None:
            peak, least_free = max(peak, _peak_bytes(process.pid)), min(least_free, free_memory())
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return Usage(process.returncode, time.monotonic() - started, peak, least_free)


def last_words(log: Path) -> str:
    """The last lines of a log, on one line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "; ".join(lines[-_LAST_WORDS:]) or "it printed nothing"


def _peak_bytes(pid: int) -> int:
    """Of a program's own pages since it began: what wait4 reports includes those of the process that forked it. 0 once it has ended."""
    match = _PEAK.search(Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    return int(match[1]) << 10 if match else 0
