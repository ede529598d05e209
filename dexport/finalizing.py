"""`dexport finalize`: a kit becomes a finished bundle, here or on another machine over ssh."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dexport.columns import amount
from dexport.errors import UserError
from dexport.progress import reporting

if TYPE_CHECKING:
    from dexport.runtime.finalize.finalize import Finished
    from dexport.runtime.finalize.job import Status
    from dexport.runtime.finalize.remote import Remote


@dataclass(frozen=True, kw_only=True)
class FinalizeRequest:
    """The arguments of `dexport finalize`, as typed."""

    kit: Path
    output: Path | None
    engines: Path | None
    test: bool
    trust: bool
    ssh: str | None
    detach: bool
    attach: bool
    status: bool
    clean: bool
    remote_dexport: str
    ssh_command: str


def finalize_command(request: FinalizeRequest) -> bool:
    """Finishes a kit and says what came of it, or how far it is; false if it failed on the device.

    Raises:
        UserError: whatever is wrong with the request.
        Failure: what broke on the way.
    """
    output = request.output or default_output(request.kit)
    modes = [f"--{name}" for name in ("detach", "attach", "status") if getattr(request, name)]
    if len(modes) > 1:
        raise UserError("finalize", expected="one of --detach, --attach and --status", got=" and ".join(modes), fix="drop the others")
    if request.clean and (request.detach or request.status):
        fix = "drop one of them; --attach --clean brings the result and deletes, or deletes what failed"
        raise UserError("--clean", expected="a run that waits for the end", got=modes[0], fix=fix)
    if request.ssh is None:
        if modes or request.clean:
            option = (modes or ["--clean"])[0]
            raise UserError(option, expected="--ssh", got="none", fix=f"add --ssh USER@DEVICE, or drop {option}")
        _finalize_here(request, output)
        return True
    if request.engines is not None:
        raise UserError("--engines", expected="no --ssh, for those engines are built already", got="both", fix="drop --ssh")
    return _finalize_there(request, request.ssh, output)


def job_command(action: str, digest: str, arguments: Sequence[str]) -> None:
    """What a desk asks of this device, see `runtime/finalize/job.py`; bytes go through standard input and output.

    Raises:
        UserError: no such job or action.
        Failure: the disk is full, or the kit arrived damaged.
    """
    from dexport.runtime.finalize.job import job_of, status_to_json

    job = job_of(digest)
    match (action, *arguments):
        case ("status",):
            click.echo(json.dumps(status_to_json(job.status())))
        case ("receive", offset, size):
            job.receive(sys.stdin.buffer, int(offset), int(size))
        case ("start", *options):
            click.echo(json.dumps(status_to_json(job.start(options))))
        case ("follow", offset):
            job.follow(int(offset), sys.stdout.buffer)
        case ("send", offset):
            job.send(int(offset), sys.stdout.buffer)
        case ("clean",):
            job.clean()
        case _:
            raise UserError("finalize-job", expected="an action of finalize --ssh", got=action, fix="leave it to `dexport finalize --ssh`")


def default_output(kit: Path) -> Path:
    """NAME-finished.dxb beside NAME.dxb, whether that is a file or a folder."""
    return kit.with_name(f"{kit.name.removesuffix('.dxb')}-finished.dxb")


def _finalize_here(request: FinalizeRequest, output: Path) -> None:
    from dexport.runtime.finalize.finalize import finalize

    start = time.monotonic()
    with reporting() as report:
        finished = finalize(request.kit, output, test=request.test, engines=request.engines, trust_code=request.trust, report=report)
    for line in summary(finished, time.monotonic() - start):
        click.echo(line)


def _finalize_there(request: FinalizeRequest, address: str, output: Path) -> bool:
    from dexport.runtime.finalize.output import check_place
    from dexport.runtime.finalize.remote import Remote
    from dexport.runtime.finalize.ssh import parse_host

    host = parse_host(address, request.ssh_command, request.remote_dexport)
    if output.suffix != ".dxb":
        raise UserError(str(output), expected="a name that ends in .dxb", got=output.name, fix="choose one with -o")
    if request.status:
        status = Remote(request.kit, host).status()
        click.echo(status_line(status))
        return status.stage != "failed"
    check_place(request.kit, output)
    start = time.monotonic()
    try:
        with reporting() as report:
            remote = Remote(request.kit, host, report)
            started = None if request.attach else remote.start(_remote_options(request))
            if not request.detach:
                _bring(remote, output, clean=request.clean, clean_failed=request.clean and request.attach)
    except KeyboardInterrupt:
        click.echo("what was started there goes on by itself; --status says how far it is, --attach follows it", err=True)
        raise
    if request.detach and started is not None:
        running = f"started on {host.login}; follow it and fetch the result with --attach, look with --status"
        click.echo(running if started.stage == "running" else status_line(started))
        return started.stage != "failed"
    click.echo(f"wrote {output}: {amount(output.stat().st_size, 'B')}, finished on {host.login}, in {time.monotonic() - start:.1f} s")
    return True


def _remote_options(request: FinalizeRequest) -> list[str]:
    """What is passed on to finalize there."""
    return [*([] if request.test else ["--no-test"]), *(["--trust"] if request.trust else [])]


def _bring(remote: Remote, output: Path, *, clean: bool, clean_failed: bool) -> None:
    """Follows the job and brings its result back; then deletes what is there of it, if that is asked for how it ended."""
    from dexport.runtime.finalize.remote import JobFailed

    try:
        remote.fetch(output, remote.follow())
    except JobFailed:
        if clean_failed:
            remote.clean()
        raise
    if clean:
        remote.clean()


def status_line(status: Status) -> str:
    """How far a job on a device is, in words."""
    match status.stage:
        case "absent":
            return "absent: nothing of this kit is there"
        case "copying":
            return f"copying: {amount(status.received, 'B')} have arrived; run it again to go on"
        case "copied":
            return "copied: not started; run it again to go on"
        case "done":
            return f"done: {amount(status.result_bytes, 'B')}; fetch it with --attach"
        case stage:
            return f"{stage}: {status.line or 'it has said nothing yet'}"


def summary(finished: Finished, seconds: float) -> list[str]:
    """What was done, in words."""
    path = finished.path
    size = path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    kept = f", {len(finished.kept)} kept from before" if finished.kept else ""
    lines = [f"wrote {path}: {amount(size, 'B')}, {len(finished.built)} engines built{kept}, in {seconds:.1f} s"]
    if finished.checks:
        worst = max(finished.checks, key=lambda check: check.error / check.tolerance)
        lines.append(
            f"golden test passed: {len(finished.checks)} runs, the worst error {worst.error:.3g} of {worst.tolerance:g} in {worst.name}"
        )
    return [*lines, *(f"warning: {warning}" for warning in finished.warnings)]
