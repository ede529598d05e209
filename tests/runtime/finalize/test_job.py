"""The device's side: how far a job is, what arrives, and what is refused; with a connection it is in test_remote.py."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import os
import threading
import time
from pathlib import Path

import pytest

from dexport.cli import main
from dexport.errors import Failure, UserError
from dexport.runtime.bundle import open_bundle
from dexport.runtime.finalize.job import Job, Status, job_of, status_from_json, status_to_json
from tests.runtime.finalize.small_kit import small_kit
from tests.runtime.small_disk import run_on_small_disk


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return small_kit(tmp_path / "kit.dxb")


@pytest.fixture
def job(kit: Path, tmp_path: Path) -> Job:
    return Job(tmp_path / "jobs" / open_bundle(kit).manifest.digest())


def test_a_kit_arrives_in_parts_that_may_overlap(kit: Path, job: Job) -> None:
    data = kit.read_bytes()
    assert job.status().stage == "absent"
    job.receive(io.BytesIO(data[:1000]), 0, len(data))
    assert (job.status().stage, job.status().received) == ("copying", 1000)
    job.receive(io.BytesIO(data[500:2000]), 500, len(data))
    job.receive(io.BytesIO(data[2000:]), 2000, len(data))
    assert (job.status().stage, job.status().received) == ("copied", len(data))


def test_another_kit_than_the_folder_is_for(kit: Path, tmp_path: Path) -> None:
    job = Job(tmp_path / ("0" * 64))
    data = kit.read_bytes()
    with pytest.raises(Failure, match=f"copied kit: expected {'0' * 64}, got "):
        job.receive(io.BytesIO(data), 0, len(data))
    assert job.status().stage == "absent"


def test_a_job_runs_without_us_and_is_followed(kit: Path, job: Job, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    data = kit.read_bytes()
    job.receive(io.BytesIO(data), 0, len(data))
    with pytest.raises(UserError, match="--attach: expected a job that was started, got copied; start it"):
        job.follow(0, io.BytesIO())
    assert job.start(["--no-test"]).stage == "running"
    assert job.start([]).stage == "running"  # once is enough
    with pytest.raises(UserError, match="--clean: expected a job that has ended, got one that runs"):
        job.clean()
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as out:
        job.follow(0, out)
    with os.fdopen(reading, "rb") as log:
        assert b"build decoder (2 of 2)" in log.read()
    status = job.status()
    assert status.stage == "done" and status.line == "done" and status.result_bytes > 0
    result = io.BytesIO()
    job.send(100, result)
    assert len(result.getvalue()) == status.result_bytes - 100
    _assert_only_what_was_asked_counts(job)
    job.clean()
    assert not job.folder.exists()


def _assert_only_what_was_asked_counts(job: Job) -> None:
    """Of a job that is done with --no-test."""
    assert job.start(["--no-test"]).stage == "done"
    record = json.loads((job.folder / "made-by.json").read_text())
    assert record["options"] == ["--no-test"] and record["tools"]["openvino"] and record["dexport"]
    for other in ({**record, "dexport": "0.0.1"}, {**record, "tools": {"openvino": "1"}}, {}, []):
        (job.folder / "made-by.json").write_text(json.dumps(other))
        assert job.status().stage == "copied"
    (job.folder / "made-by.json").write_text(json.dumps(record))
    assert job.status().stage == "done"
    assert job.start([]).stage == "running" and not (job.folder / "out.dxb").exists()
    with (job.folder / "log").open("rb") as log, open(os.devnull, "wb") as nowhere:
        job.follow(0, nowhere)
        assert b"golden test passed" in log.read()


def test_who_looks_keeps_nobody_from_looking_or_starting(kit: Path, job: Job) -> None:
    data = kit.read_bytes()
    job.receive(io.BytesIO(data), 0, len(data))
    (job.folder / "lock").touch()
    with (job.folder / "lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert job.status().stage == "copied"
        done = threading.Timer(0.3, fcntl.flock, (looking, fcntl.LOCK_UN))
        done.start()
        assert job.start(["--no-test"]).stage == "running"
        done.join()
    with open(os.devnull, "wb") as nowhere:
        job.follow(0, nowhere)
    assert job.status().stage == "done"


def test_following_ends_when_nobody_reads(job: Job) -> None:
    job.folder.mkdir(parents=True)
    (job.folder / "log").write_text("")
    reading, writing = os.pipe()
    os.close(reading)
    with (job.folder / "lock").open("w") as lock, os.fdopen(writing, "wb") as out:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as if it ran, and had nothing to say
        started = time.monotonic()
        job.follow(0, out)
        assert time.monotonic() - started < 5


def test_the_last_error_tells_why_it_failed(job: Job) -> None:
    job.folder.mkdir(parents=True)
    (job.folder / "log").write_text("[    0.1 s] build a (1 of 1)\nerror: disk: expected room, got none; free some\n")
    assert job.status().stage == "failed" and job.status().line == "disk: expected room, got none; free some"
    (job.folder / "log").write_text("[    0.1 s] build a (1 of 1)\n")
    assert job.status().line.startswith("finalize: expected it to end, got stopped at 'build a (1 of 1)' without a word")


def test_a_full_disk_keeps_what_arrived(tmp_path: Path) -> None:
    code = """
import io
from pathlib import Path
from dexport.errors import Failure
from dexport.runtime.finalize.job import Job
job = Job(Path("job"))
job.receive(io.BytesIO(bytes(1000)), 0, 900 << 10)
for size in (2 << 20, 1):
    try:
        job.receive(io.BytesIO(bytes(2 << 20)), 1000, size)
    except Failure as error:
        print(error)
print(job.status().stage, job.status().received > 1000)
"""
    (tmp_path / "disk").mkdir()
    before, during, status = run_on_small_disk(tmp_path / "disk", code).splitlines()
    assert before.startswith("job: expected 2096152 bytes free for the kit, got ") and "what has arrived is kept" in before
    assert during.startswith("job: expected ") and " bytes free for the kit, got 0; " in during
    assert status == "copying True"


def test_what_a_device_answers_is_checked() -> None:
    status = Status("0.1.0", "done", "done", 3, 5, "a" * 64)
    assert status_from_json(json.dumps(status_to_json(status)).encode()) == status
    shouted = {**status_to_json(status), "line": "\x1b[2Jdone", "dexport": "\x070.1"}
    assert status_from_json(json.dumps(shouted).encode()) == dataclasses.replace(status, line="\\x1b[2Jdone", dexport="\\x070.1")


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "ready"},
        {"stage": ["done"]},
        {"result": "../../x"},
        {"result": ""},
        {"result_bytes": "5"},
        {"result_bytes": 5.0},
        {"result_bytes": True},
        {"received": -1},
        {"line": None},
        {"dexport": 1},
        {"more": 1},
    ],
)
def test_an_answer_that_is_no_status(changes: dict[str, object]) -> None:
    document = status_to_json(Status("0.1.0", "done", "done", 3, 5, "a" * 64)) | changes
    with pytest.raises(ValueError):
        status_from_json(json.dumps(document).encode())


@pytest.mark.parametrize("data", [b"welcome", b"[]", b"1", b"\xff", b"[" * 60000])
def test_an_answer_that_is_nothing(data: bytes) -> None:
    with pytest.raises(ValueError):
        status_from_json(data)


def test_names_and_actions_that_are_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEXPORT_CACHE_DIR", str(tmp_path))
    assert job_of("a" * 64).folder == tmp_path / "finalize" / ("a" * 64)
    with pytest.raises(UserError, match="job: expected 64 hexadecimal digits, got"):
        job_of("../../etc")
    assert main(["finalize-job", "erase", "a" * 64]) == 2
    assert "expected an action of finalize --ssh, got erase" in capsys.readouterr().err
    assert main(["--help"]) == 0 and "finalize-job" not in capsys.readouterr().out
