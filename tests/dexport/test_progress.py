"""One line per stage without a terminal, a bar that leaves nothing behind with one."""

import os
import pty
import subprocess
import sys

import pytest

from dexport.progress import reporting

_REPORTS = """
from dexport.progress import reporting
with reporting() as report:
    report("capture [red]", 0.1)
    report("pack", None)
    report("pack", 1.0)
"""


def test_a_line_per_stage_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting() as report:
        report("capture", 0.0)
        report("capture", 0.5)
        report("pack", None)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.rpartition("] ")[2] for line in captured.err.splitlines()] == ["capture", "pack"]


def test_a_bar_on_a_terminal() -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    subprocess.run([sys.executable, "-c", _REPORTS], stderr=slave, check=True, env=environment)
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert "pack" in shown
    assert "━" in shown
    assert shown.rstrip().endswith("\x1b[2K")  # the line is erased at the end
