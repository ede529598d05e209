"""The desk's side of `finalize --ssh`: copies the kit, starts finalize there, follows it, and brings the result back.

Every step asks the device first how far it is, so each can be repeated: after a lost connection, from another desk, or by running
the same command again.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from dexport.errors import DexportError, Failure, UserError
from dexport.runtime.bundle import open_bundle
from dexport.runtime.bundle_writer import BundleWriter, copy_file
from dexport.runtime.finalize.job import STAGE_LINE, Status, status_from_json
from dexport.runtime.finalize.output import check_place
from dexport.runtime.finalize.ssh import ConnectionLost, Host, error_from
from dexport.runtime.manifest import Manifest
from dexport.runtime.strict_json import shown

Result = TypeVar("Result")
Report = Callable[[str, float | None], None]

COMMAND = "finalize-job"
"""The command of dexport that the device runs for the desk."""

_CHUNK_BYTES = 1 << 18
_MOST_TRIES = 6
_ATTACH = "the device goes on by itself; continue with --attach"
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_MOST_STATUS_BYTES = 1 << 16


class JobFailed(Failure):
    """finalize ended with an error there; the kit and the engines that it has finished are kept."""


@dataclass
class Remote:
    """A kit and the machine on which it is finished.

    Args:
        kit: at the desk.
        host: where it is for.
        report: called with what is going on.
        pause: seconds to wait after a first lost connection; doubled each time.
    """

    kit: Path
    host: Host
    report: Report = lambda stage, done: None
    pause: float = _FIRST_PAUSE
    _manifest: Manifest = field(init=False)
    _arrived: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._manifest = open_bundle(self.kit, verify="sizes").manifest
        if not self._manifest.is_kit:
            raise UserError(str(self.kit), expected="a build kit", got="a finished bundle", fix="use it as it is")

    def status(self) -> Status:
        """How far it is there.

        Raises:
            UserError: the host cannot be used, or has another version of dexport.
            ConnectionLost: it cannot be reached.
        """
        status = self._status()
        ours = metadata.version("dexport")
        if status.dexport != ours:
            fix = f"install the same there: pip install dexport=={ours}"
            raise UserError(f"{self.host.login}: dexport", expected=f"version {ours}", got=status.dexport, fix=fix)
        return status

    def start(self, options: Sequence[str] = ()) -> Status:
        """Copies the kit, if it is not there, and starts finalize, unless it is running or has done just that.

        Args:
            options: for `dexport finalize` there.
        """
        status = self.status()
        if status.stage in ("absent", "copying"):
            with tempfile.TemporaryDirectory(prefix=".dexport-", dir=self.kit.absolute().parent) as scratch:
                self._copy(self._archive(Path(scratch)), status)
        return status if status.stage == "running" else self._persistently(lambda: self._asked("start", *options))

    def follow(self) -> Status:
        """Reports what finalize says there until it has ended.

        Raises:
            UserError: it was never started.
            JobFailed: it failed, with its reason.
            Failure: the connection was lost for good, and how to attach again.
        """
        log = _Log(self.report)
        self._persistently(lambda: self._call("follow", str(log.seen), receive=log.take), lambda: log.seen)
        status = self._persistently(self._status)
        if status.stage != "done":
            raise self._not_done(status)
        return status

    def fetch(self, out: Path, status: Status | None = None) -> Path:
        """Brings the finished bundle back; what arrived of it before is kept.

        Args:
            out: where to put it: one file, as which it travels.
            status: what `follow` returned, if it was called.

        Raises:
            UserError: `out` is the kit, or holds something else than a bundle.
            Failure: it is not done, the disk is full, or what arrived is something else.
        """
        check_place(self.kit, out)
        status = status or self._persistently(self._status)
        if status.stage != "done":
            raise self._not_done(status)
        result, size = status.result, status.result_bytes
        part = out.with_name(f".{out.name}.{result[:16]}.part")
        try:
            self._persistently(lambda: self._download(part, size), lambda: part.stat().st_size)
        except OSError as error:
            fix = "free some space or write somewhere else with -o, then run it again with --attach"
            raise Failure(str(out), expected="room for the bundle", got=error.strerror or "an error", fix=fix) from error
        try:
            arrived = open_bundle(part).manifest.digest()
        except UserError as error:
            arrived = f"something else ({error.got})"
        if arrived != result:
            part.unlink()
            raise Failure(str(out), expected=f"the bundle {result}", got=arrived, fix="run it again with --attach, to copy it again")
        check_place(self.kit, out)  # much may have happened since
        os.replace(part, out)
        return out

    def clean(self) -> None:
        """Deletes what is there of this kit."""
        self._persistently(lambda: self._call("clean"))

    def _archive(self, scratch: Path) -> Path:
        """The kit as one file."""
        if self.kit.is_file():
            return self.kit
        self.report(f"pack {self.kit}", None)
        bundle = open_bundle(self.kit, trust=True)  # nothing of it runs here
        with BundleWriter(scratch / "kit.dxb") as writer:
            for relative in bundle.manifest.files:
                copy_file(bundle, relative, writer.directory / relative, link=True)
            return writer.finish(bundle.manifest)

    def _copy(self, archive: Path, status: Status) -> None:
        """Sends what is not there yet, asking again after each lost connection how much that is."""
        size, stage = archive.stat().st_size, f"copy {self.kit.name} to {self.host.login}"
        known: list[Status] = [status]

        def rest(offset: int) -> Iterator[bytes]:
            with archive.open("rb") as file:
                file.seek(offset)
                while chunk := file.read(_CHUNK_BYTES):
                    self.report(stage, file.tell() / size)
                    yield chunk

        def send() -> None:
            now = known.pop() if known else self._status()
            self._arrived = now.received
            if now.stage in ("absent", "copying"):
                self._call("receive", str(now.received), str(size), send=rest(now.received))

        self.report(stage, status.received / size)
        self._persistently(send, lambda: self._arrived, "run the same command again: what has arrived is kept")

    def _download(self, part: Path, size: int) -> None:
        """Brings what is not here yet."""
        stage = f"copy the result from {self.host.login}"
        with part.open("ab") as file:

            def take(chunk: bytes) -> None:
                file.write(chunk)
                self.report(stage, file.tell() / size)

            if file.tell() < size:
                self._call("send", str(file.tell()), receive=take)
            file.flush()
            os.fsync(file.fileno())
        if part.stat().st_size < size:
            raise ConnectionLost(self.host.login, expected=f"{size} bytes", got=f"{part.stat().st_size}", fix="run it again with --attach")

    def _persistently(self, action: Callable[[], Result], progress: Callable[[], int] = lambda: 0, again: str = _ATTACH) -> Result:
        """Repeats an action that loses its connection, a bounded number of times since `progress` last grew."""
        tries, last = 0, -1
        while True:
            try:
                return action()
            except ConnectionLost as lost:
                now = progress()
                tries, last = (1 if now > last >= 0 else tries + 1), now
                if tries > _MOST_TRIES:
                    got = f"{lost.got}, {tries} times"
                    raise Failure(self.host.login, expected="a connection", got=got, fix=again) from lost
                wait = min(self.pause * 2 ** (tries - 1), _LONGEST_PAUSE)
                self.report(f"connection lost ({lost.got}); again in {wait:.0f} s, try {tries} of {_MOST_TRIES}", None)
                time.sleep(wait)

    def _not_done(self, status: Status) -> DexportError:
        """Why there is no result."""
        where = self.host.login
        if status.stage == "failed":
            return error_from(where, status.line, JobFailed)
        if status.stage == "running":
            return Failure(where, expected="a job that is done", got=f"one that runs: {status.line}", fix="wait for it with --attach")
        fix = "start it: the same command without --attach"
        return UserError(where, expected="a job that was started", got=status.stage, fix=fix)

    def _status(self) -> Status:
        return self._asked("status")

    def _asked(self, action: str, *arguments: str) -> Status:
        """Runs an action that answers how far the job then is."""
        answer = bytearray()
        self._call(action, *arguments, receive=answer.extend)
        try:
            return status_from_json(bytes(answer[:_MOST_STATUS_BYTES]))
        except ValueError as error:
            got = shown(bytes(answer[:80]).decode(errors="replace").strip()) or "nothing"
            fix = "check that logging in there prints nothing, and that both have the same dexport"
            raise Failure(f"{self.host.login}: dexport", expected="its answer", got=got, fix=fix) from error

    def _call(
        self, action: str, *arguments: str, send: Iterable[bytes] = (), receive: Callable[[bytes], object] = lambda chunk: None
    ) -> None:
        self.host.call(COMMAND, action, self._manifest.digest(), "--", *arguments, send=send, receive=receive)


class _Log:
    """The job's log as it arrives: whole lines are reported, without the device's clock."""

    def __init__(self, report: Report) -> None:
        self.seen = 0
        self._report = report
        self._rest = b""

    def take(self, chunk: bytes) -> None:
        """Takes the next bytes, wherever lines end."""
        self.seen += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            text = shown(line.decode(errors="replace"), 1000)
            stage = STAGE_LINE.fullmatch(text)
            self._report(stage[1] if stage else text, None)
