"""One command in a process of its own: its output in a file, its memory watched, and never longer alive than we are."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dexport.runtime.device import free_memory

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SECONDS_BETWEEN_LOOKS = 0.05
_LAST_WORDS = 3


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Attributes:
        code: exit status; minus the number of the signal that ended it.
        seconds: wall time.
        peak_memory: most bytes that it and what it started had in memory at once (ru_maxrss). GPU memory is not in it.
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
    started, least_free = time.monotonic(), free_memory()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=_die_with_parent)
    try:
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            least_free = min(least_free, free_memory())
            if pid:
                break
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    except BaseException:
        process.kill()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return Usage(process.returncode, time.monotonic() - started, _peak_bytes(usage), least_free)


def last_words(log: Path) -> str:
    """The last lines of a log, on one line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "; ".join(lines[-_LAST_WORDS:]) or "it printed nothing"


def _peak_bytes(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _die_with_parent() -> None:
    """Runs in the new process: asks the kernel to kill it when its parent ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
