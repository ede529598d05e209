"""A command is watched: its memory, its end, and that it does not outlive us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dexport.runtime.finalize.process import last_words, run_watched


def test_memory_and_output_of_a_command(tmp_path: Path) -> None:
    code = "import time; block = bytearray(64 << 20); print('first'); print('last', flush=True); time.sleep(0.2)"
    usage = run_watched([sys.executable, "-c", code], tmp_path / "log")
    assert usage.code == 0 and not usage.failed
    assert 64 << 20 <= usage.peak_memory < 256 << 20
    assert usage.seconds >= 0.2 and usage.least_free > 0
    assert last_words(tmp_path / "log") == "first; last"


def test_our_own_memory_is_not_the_command_s(tmp_path: Path) -> None:
    """A fork holds all pages of its parent until it becomes the command, and what wait4 reports counts them."""
    held = bytearray(b"x") * (300 << 20)
    usage = run_watched([sys.executable, "-c", "import time; time.sleep(0.1)"], tmp_path / "log")
    del held
    assert 1 << 20 < usage.peak_memory < 64 << 20


@pytest.mark.parametrize(
    ("code", "failed"),
    [
        ("raise SystemExit(3)", "exit status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL, as the system does where memory runs out"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "SIGTERM"),
    ],
)
def test_how_a_command_ended(tmp_path: Path, code: str, failed: str) -> None:
    assert run_watched([sys.executable, "-c", code], tmp_path / "log").failed == failed
    assert last_words(tmp_path / "log") == "it printed nothing"


def test_a_command_dies_with_us(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    inner = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    outer = (
        "import sys; from pathlib import Path; from dexport.runtime.finalize.process import run_watched; "
        f"run_watched([sys.executable, '-c', {inner!r}], Path({str(tmp_path / 'log')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", outer])
    deadline = time.monotonic() + 20
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    child = int(pid_file.read_text())
    process.send_signal(signal.SIGKILL)
    process.wait()
    while _lives(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _lives(child)


def _lives(pid: int) -> bool:
    """Whether a process still runs; a zombie whom nobody has waited for does not."""
    try:
        os.kill(pid, 0)
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
