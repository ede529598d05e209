"""`dexport finalize` as typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dexport.cli import main
from dexport.finalizing import default_output, status_line, summary
from dexport.runtime.bundle import open_bundle
from dexport.runtime.finalize.finalize import Finished
from dexport.runtime.finalize.job import Status
from dexport.runtime.finalize.remote import JobFailed, Remote
from dexport.runtime.selftest import Check
from tests.runtime.finalize.small_kit import small_kit


def test_a_kit_is_finished_beside_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kit = small_kit(tmp_path / "small.dxb")
    assert main(["finalize", str(kit)]) == 0
    printed = capsys.readouterr()
    assert f"wrote {tmp_path}/small-finished.dxb: " in printed.out and ", 2 engines built, in " in printed.out
    assert "golden test passed: 2 runs, the worst error " in printed.out
    assert "build denoiser-64x64 (1 of 2)" in printed.err and "MiB of memory" in printed.err
    assert not open_bundle(tmp_path / "small-finished.dxb").manifest.is_kit
    assert main(["finalize", str(tmp_path / "small-finished.dxb")]) == 2
    assert capsys.readouterr().err.startswith("error: finalize: expected a build kit, got a finished bundle")


def test_names_of_outputs() -> None:
    assert default_output(Path("a/model.dxb")) == Path("a/model-finished.dxb") == default_output(Path("a/model"))


def test_the_summary_says_what_was_kept_and_what_was_bad(tmp_path: Path) -> None:
    (tmp_path / "out.dxb").write_bytes(bytes(2000))
    checks = (Check("loop", 1e-4, 1e-3), Check("pipeline", 5e-4, 1e-2))
    lines = summary(Finished(tmp_path / "out.dxb", ("a",), ("b", "c"), checks, ("little memory",)), 1.0)
    assert lines == [
        f"wrote {tmp_path}/out.dxb: 2 kB, 1 engines built, 2 kept from before, in 1.0 s",
        "golden test passed: 2 runs, the worst error 0.0001 of 0.001 in loop",
        "warning: little memory",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--status"], "--status: expected --ssh, got none; add --ssh USER@DEVICE, or drop --status"),
        (["--clean"], "--clean: expected --ssh, got none"),
        (["--ssh", "x", "--attach", "--status"], "finalize: expected one of --detach, --attach and --status, got --attach and --status"),
        (["--ssh", "x", "--detach", "--clean"], "--clean: expected a run that waits for the end, got --detach; drop one of them"),
        (["--ssh", "x", "--status", "--clean"], "--clean: expected a run that waits for the end, got --status; drop one of them"),
        (["--ssh", "x", "--engines", "y"], "--engines: expected no --ssh, for those engines are built already, got both"),
        (["--ssh", "-x"], "--ssh: expected [USER@]HOST[:PORT], got '-x'"),
        (["--ssh", "x", "-o", "folder"], "expected a name that ends in .dxb, got folder"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert main(["finalize", str(tmp_path / "kit.dxb"), *options]) == 2
    assert message in capsys.readouterr().err


def test_over_ssh_too_nothing_but_a_bundle_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kit, notes = small_kit(tmp_path / "kit.dxb"), tmp_path / "notes.dxb"
    notes.write_text("mine")
    before = kit.read_bytes()
    for out, message in ((kit, "expected another name than the kit's"), (notes, "expected nothing there, or a bundle to replace")):
        assert main(["finalize", str(kit), "-o", str(out), "--ssh", "no-host", "--ssh-command", "no-such-ssh"]) == 2
        assert message in capsys.readouterr().err
    assert kit.read_bytes() == before and notes.read_text() == "mine"


@pytest.mark.parametrize("options", [[], ["--no-test"], ["--trust"], ["--no-test", "--trust"]])
def test_the_device_is_told_what_the_desk_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    told: list[str] = []

    def start(remote: Remote, passed: list[str]) -> Status:
        told.extend(passed)
        return Status("0.1.0", "running")

    monkeypatch.setattr(Remote, "start", start)
    assert main(["finalize", str(small_kit(tmp_path / "kit.dxb")), "--ssh", "x", "--detach", *options]) == 0
    assert told == options


def test_interrupted_at_the_desk_the_device_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Remote, "start", interrupted)
    assert main(["finalize", str(small_kit(tmp_path / "kit.dxb")), "--ssh", "orin"]) == 130
    assert "goes on by itself; --status says how far it is, --attach follows it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (Status("1", "running", "build loop (1 of 3)"), 0, "started on orin; follow it and fetch the result with --attach"),
        (Status("1", "done", result_bytes=1500), 0, "done: 1.5 kB; fetch it with --attach"),
        (Status("1", "failed", "disk full"), 1, "failed: disk full"),
    ],
)
def test_detached_it_says_how_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, status: Status, code: int, said: str
) -> None:
    monkeypatch.setattr(Remote, "start", lambda *arguments: status)
    assert main(["finalize", str(small_kit(tmp_path / "kit.dxb")), "--ssh", "orin", "--detach"]) == code
    assert capsys.readouterr().out.startswith(said)


@pytest.mark.parametrize(("options", "cleaned"), [([], 0), (["--clean"], 0), (["--attach"], 0), (["--attach", "--clean"], 1)])
def test_what_failed_is_deleted_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], cleaned: int) -> None:
    """A failed run that did not only attach can be repeated, which is worth more than the room that it takes."""

    def fail(remote: Remote) -> Status:
        raise JobFailed("orin", expected="it to end", got="a failure", fix="look")

    deleted: list[Remote] = []
    monkeypatch.setattr(Remote, "start", lambda *arguments: Status("1", "running"))
    monkeypatch.setattr(Remote, "follow", fail)
    monkeypatch.setattr(Remote, "clean", lambda remote: deleted.append(remote))
    assert main(["finalize", str(small_kit(tmp_path / "kit.dxb")), "--ssh", "orin", *options]) == 1
    assert len(deleted) == cleaned


def test_how_far_a_job_is_in_words() -> None:
    assert status_line(Status("1", "copying", received=1500)) == "copying: 1.5 kB have arrived; run it again to go on"
    assert status_line(Status("1", "copied")).startswith("copied: not started")
    assert status_line(Status("1", "running", "build loop (1 of 3)")) == "running: build loop (1 of 3)"
    assert status_line(Status("1", "running")) == "running: it has said nothing yet"
    assert status_line(Status("1", "failed", "disk full")) == "failed: disk full"
    assert status_line(Status("1", "done", result_bytes=2_000_000)) == "done: 2 MB; fetch it with --attach"
