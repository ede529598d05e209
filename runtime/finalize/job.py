"""The device's side of `finalize --ssh`: a folder per kit, and what the desk asks for, each in a command of its own.

    ~/.cache/dexport/finalize/<digest of the kit's manifest>/
      kit.dxb.part   as much as has arrived; kit.dxb once it is complete and checked
      lock           held by the running finalize
      log            what it prints
      made-by.json   what was asked for, and with what it is done; a result of something else counts for nothing
      out.dxb        the finished bundle

The folder's name says what the kit is, so that a desk finds its job again without having noted anything, and whoever sends it
again writes the same bytes to the same places.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from dexport.errors import DexportError, Failure, UserError
from dexport.runtime.bundle import open_bundle
from dexport.runtime.device import this_device
from dexport.runtime.disk import disk_full, is_full
from dexport.runtime.engines import compile_cache
from dexport.runtime.finalize.task import builder_for
from dexport.runtime.strict_json import shown

Stage = Literal["absent", "copying", "copied", "running", "done", "failed"]

_ID = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 20
_MOST_LINE_BYTES, _MOST_ERROR = 64 << 10, 4000
_MILLISECONDS_BETWEEN_LOOKS = 200
_SECONDS_OF_A_LOOK = 0.01
STAGE_LINE = re.compile(r"\[ *[0-9.]+ s\] (.*)")
"""How finalize shows what it is doing where there is no terminal; see `dexport.progress`."""


@dataclass(frozen=True)
class Status:
    """How far a job is.

    Attributes:
        dexport: version on the device.
        stage: see `Stage`.
        line: what it is doing or did last; of a failed one the error.
        received: bytes of the kit that are there.
        result_bytes: size of the finished bundle.
        result: digest of its manifest; empty before.
    """

    dexport: str
    stage: Stage
    line: str = ""
    received: int = 0
    result_bytes: int = 0
    result: str = ""


@dataclass(frozen=True)
class Job:
    """One kit on its device."""

    folder: Path

    def status(self) -> Status:
        """How far it is. A result that another dexport or other tools made is none: the kit then counts as copied."""
        version = metadata.version("dexport")
        if self._is_running():
            return Status(version, "running", self._last_stage())
        if self._out.exists() and self._is_made_by(self._record().get("options")):
            digest = open_bundle(self._out, verify="sizes").manifest.digest()
            return Status(version, "done", self._last_stage(), result_bytes=self._out.stat().st_size, result=digest)
        if self._log.exists() and not self._out.exists():
            return Status(version, "failed", self._error())
        if self._kit.exists():
            return Status(version, "copied", received=self._kit.stat().st_size)
        if self._part.exists():
            return Status(version, "copying", received=self._part.stat().st_size)
        return Status(version, "absent")

    def receive(self, source: BinaryIO, offset: int, size: int) -> None:
        """Writes what comes from `source` to the kit from `offset` on; once all `size` bytes are there, checks it and gives it its name.

        Raises:
            Failure: the disk is, or would be, full; or the kit is not what it should be, and what had arrived is deleted.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if free < size - offset:
                raise self._no_room(size - offset, free)
            descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                while chunk := source.read1(_CHUNK_BYTES):  # type: ignore[attr-defined]
                    view = memoryview(chunk)
                    while view:
                        written = os.pwrite(descriptor, view, offset)
                        view, offset = view[written:], offset + written
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            if is_full(error):
                raise self._no_room(size - offset, shutil.disk_usage(self.folder).free) from error
            raise
        if self._part.stat().st_size >= size:
            self._accept()

    def _no_room(self, needed: int, free: int) -> Failure:
        return disk_full(self.folder, f"{needed} bytes free for the kit", f"{free}", "there and run it again: what has arrived is kept")

    def _accept(self) -> None:
        """Checks every byte of the kit, whose own manifest says what they must be, and that it is the kit of this folder."""
        try:
            digest = open_bundle(self._part).manifest.digest()
        except UserError as error:
            self._part.unlink(missing_ok=True)
            got, fix = f"something else ({error.where}: {error.got})", "run it again to copy it again"
            raise Failure("copied kit", expected="the kit as it was sent", got=got, fix=fix) from error
        if digest != self.folder.name:
            self._part.unlink()
            raise Failure("copied kit", expected=self.folder.name, got=digest, fix="run it again to copy it again")
        self._part.rename(self._kit)

    def start(self, options: Sequence[str]) -> Status:
        """Starts finalize in a session of its own, so that it goes on when the connection ends, unless it runs, or has done just that.

        The lock goes to it open: the kernel releases it when that process ends, however it ends.

        Raises:
            UserError: there is no kit that this machine can finish.
        """
        lock = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if self._takes(lock) and not (self._out.exists() and self._is_made_by(list(options))):
                self._start(options, lock)
        finally:
            os.close(lock)
        return self.status()

    def _takes(self, lock: int) -> bool:
        """Whether the lock is ours now; false if finalize has it. Who only looks has it too, but not for long."""
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if self._is_running():
                    return False
                time.sleep(_SECONDS_OF_A_LOOK)

    def _start(self, options: Sequence[str], lock: int) -> None:
        record = self._made_by(options)
        self._out.unlink(missing_ok=True)
        self._made_by_file.write_text(json.dumps(record), encoding="utf-8")
        command = [sys.executable, "-m", "dexport", "finalize", str(self._kit), "-o", str(self._out), *options]
        with self._log.open("wb") as log:
            subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=(lock,)
            )

    def _made_by(self, options: Sequence[str]) -> dict[str, Any]:
        """What decides, beside the kit, what comes out: of a job that is asked for now."""
        manifest = open_bundle(self._kit, verify="sizes").manifest
        return {"options": list(options), "dexport": metadata.version("dexport"), "tools": dict(builder_for(manifest, this_device()).tools)}

    def _record(self) -> dict[str, Any]:
        """The same of the job that was started; empty where nobody knows."""
        try:
            record = json.loads(self._made_by_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def _is_made_by(self, options: Any) -> bool:
        """Whether what is there was asked for with these options, and would be made in the same way now."""
        record = self._record()
        try:
            return bool(record) and record == self._made_by(options)
        except (DexportError, TypeError):
            return False

    def follow(self, offset: int, out: BinaryIO) -> None:
        """Copies the log from `offset` on to `out`, as it grows, until the job has ended or nobody reads any more.

        Raises:
            UserError: it was never started.
        """
        if not self._log.exists():
            fix = "start it: the same command without --attach"
            raise UserError("--attach", expected="a job that was started", got=self.status().stage, fix=fix)
        gone = select.poll()
        gone.register(out, 0)  # errors and hang-ups are always reported
        with self._log.open("rb") as log:
            log.seek(offset)
            while True:
                running = self._is_running()
                while chunk := log.read(_CHUNK_BYTES):
                    out.write(chunk)
                    out.flush()
                if not running or gone.poll(_MILLISECONDS_BETWEEN_LOOKS):
                    return

    def send(self, offset: int, out: BinaryIO) -> None:
        """Copies the finished bundle from `offset` on to `out`."""
        with self._out.open("rb") as file:
            file.seek(offset)
            shutil.copyfileobj(file, out, _CHUNK_BYTES)
        out.flush()

    def clean(self) -> None:
        """Deletes everything of the job.

        Raises:
            UserError: it is running.
        """
        if self._is_running():
            raise UserError("--clean", expected="a job that has ended", got="one that runs", fix="wait for it with --attach")
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _kit(self) -> Path:
        return self.folder / "kit.dxb"

    @property
    def _part(self) -> Path:
        return self.folder / "kit.dxb.part"

    @property
    def _lock(self) -> Path:
        return self.folder / "lock"

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    @property
    def _made_by_file(self) -> Path:
        return self.folder / "made-by.json"

    @property
    def _out(self) -> Path:
        return self.folder / "out.dxb"

    def _is_running(self) -> bool:
        """Looks with a lock that others who look may have at the same time."""
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(self._lock, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(lock)
        return False

    def _lines(self) -> list[str]:
        """The end of the log."""
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, self._log.stat().st_size - _MOST_LINE_BYTES))
                return log.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []

    def _last_stage(self) -> str:
        stages = [match[1] for line in self._lines() if (match := STAGE_LINE.fullmatch(line))]
        return shown(stages[-1], 400) if stages else ""

    def _error(self) -> str:
        errors = [line.removeprefix("error: ") for line in self._lines() if line.startswith("error: ")]
        if errors:
            return shown(errors[-1], _MOST_ERROR)
        stopped = f"stopped at '{self._last_stage()}' without a word: killed, or the device was switched off"
        return f"finalize: expected it to end, got {stopped}; run it again, it goes on from there"


def job_of(digest: str) -> Job:
    """The job of a kit on this machine.

    Raises:
        UserError: that is no digest.
    """
    if not _ID.fullmatch(digest):
        raise UserError(
            "job", expected="64 hexadecimal digits", got=repr(shown(digest)), fix="leave this command to `dexport finalize --ssh`"
        )
    return Job(compile_cache().parent / "finalize" / digest)


def status_to_json(status: Status) -> dict[str, object]:
    """For the desk."""
    return dataclasses.asdict(status)


def status_from_json(data: bytes) -> Status:
    """What a device answered; its texts become harmless to print.

    Raises:
        ValueError: it is no status.
    """
    try:
        status = Status(**json.loads(data))
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    texts, sizes = (status.dexport, status.stage, status.line, status.result), (status.received, status.result_bytes)
    if not all(isinstance(text, str) for text in texts) or any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError("a text or a size of another type")
    if status.stage not in get_args(Stage) or not (status.result == "" or _ID.fullmatch(status.result)):
        raise ValueError("no known stage, or no digest")
    if status.stage == "done" and not status.result:
        raise ValueError("done without a result")
    return dataclasses.replace(status, dexport=shown(status.dexport), line=shown(status.line, _MOST_ERROR))
