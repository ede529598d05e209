"""Whatever goes wrong is one line on stderr and an exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from dexport.cli import _explain, dexport, main
from dexport.errors import DexportError, Failure, UserError

COMMAND = [sys.executable, "-m", "dexport"]


def _one_error(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    return captured.err


def test_help_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage: dexport" in capsys.readouterr().out


SHOWN = sorted("plugins build" if name == "plugins" else name for name, command in dexport.commands.items() if not command.hidden)


@pytest.mark.parametrize("name", SHOWN)
def test_every_command_explains_itself_and_takes_the_common_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "--debug" in text
    assert "--verbose" in text


def test_the_commands_are_those_of_the_readme() -> None:
    making = ["build", "calibrate", "compare", "estimate", "finalize", "plugins", "recipes", "sensitivity"]
    shown = [name for name, command in dexport.commands.items() if not command.hidden]
    assert sorted(shown) == sorted([*making, "doctor", "inspect", "run", "selftest", "targets"])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("dexport 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["build", "x", "--precison", "fp16"], "--precision"),
        (["build", "x", "--precision", "fp12"], "fp12"),
        (["run", "x.dxb", "--prompt", "a", "-o", "a.png", "--steps", "0"], "--steps"),
        (["run", "x.dxb", "--prompt", "a"], "Missing option '-o'"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = _one_error(capsys)
    assert message in error
    assert "--help`)" in error


def test_user_errors_are_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["inspect", str(tmp_path / "none.dxb")]) == 2
    assert "expected a bundle, got nothing there; check the path or make one with `dexport build`" in _one_error(capsys)


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["inspect", str(tmp_path / "none.dxb"), "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("file", expected="a", got="b", fix="c"), 2, "file: expected a, got b; c"),
        (Failure("disk", expected="room", got="none", fix="free some"), 1, "disk: expected room, got none; free some"),
        (ValueError("surprise"), 1, "internal error: ValueError: surprise; run with --debug and report it"),
        (click.ClickException("click says"), 1, "click says"),
    ],
)
def test_what_errors_say(error: Exception, code: int, message: str) -> None:
    assert _explain(error) == (message, code)


def test_errors_know_their_parts() -> None:
    error = DexportError("file", expected="a", got="b", fix="c")
    assert (error.where, error.expected, error.got, error.fix, error.exit_code) == ("file", "a", "b", "c", 1)


def test_interrupt_is_130_without_a_traceback(tmp_path: Path) -> None:
    fifo = tmp_path / "config.yaml"
    os.mkfifo(fifo)
    command = [*COMMAND, "build", "model", "--config", str(fifo)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=_hear_interrupts)
    _wait_until_reading(fifo)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.strip() == "interrupted"


def _hear_interrupts() -> None:
    """Shells start background jobs, and so perhaps these tests, with interrupts ignored, which children inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _wait_until_reading(fifo: Path) -> None:
    """Returns once a process has opened the fifo for reading; nobody writes to it, so that the process stays there."""
    for _ in range(600):
        try:
            os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            time.sleep(0.2)
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the command did not open its configuration")


def test_a_closed_pipe_is_quiet() -> None:
    script = f"set -o pipefail; {' '.join(COMMAND)} targets --json | head -c 1"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert result.stdout == "["
    assert result.stderr == ""


def test_shell_completion_is_offered() -> None:
    environment = {**os.environ, "_DEXPORT_COMPLETE": "bash_complete", "COMP_WORDS": "dexport ins", "COMP_CWORD": "1"}
    result = subprocess.run(COMMAND, capture_output=True, text=True, env=environment)
    assert "inspect" in result.stdout


def test_logging_goes_to_stderr_and_only_when_asked_for() -> None:
    code = (
        "import logging, sys\nfrom dexport.cli import main\nmain(sys.argv[1:])\n"
        "logging.getLogger('dexport.x').warning('cut')\nlogging.getLogger('dexport.x').info('step')\nlogging.getLogger('other').warning('noise')\n"
    )
    quiet, verbose = (
        subprocess.run([sys.executable, "-c", code, "targets", *flags], capture_output=True, text=True).stderr for flags in ([], ["-v"])
    )
    assert quiet == "WARNING: cut\n"
    assert verbose.splitlines() == ["WARNING dexport.x: cut", "INFO dexport.x: step", "WARNING other: noise"]
