"""finalize over ssh, with OpenSSH's own server and client on this machine and a kit for its processor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dexport.cli import main
from dexport.errors import DexportError, Failure, UserError
from dexport.runtime.bundle import open_bundle
from dexport.runtime.finalize.finalize import finalize
from dexport.runtime.finalize.remote import Remote
from dexport.runtime.finalize.ssh import ConnectionLost
from tests.runtime.finalize.small_kit import small_kit
from tests.runtime.finalize.ssh_server import Server, ssh_server

_BALLAST = 3 << 20
_REPORT = "report/finalize.json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with ssh_server(tmp_path_factory.mktemp("ssh")) as running:
        yield running


@pytest.fixture
def said() -> list[str]:
    return []


def _remote(kit: Path, server: Server, said: list[str], **changes: object) -> Remote:
    def report(stage: str, done: float | None) -> None:
        if not said or said[-1] != stage:
            said.append(stage)

    return Remote(kit, server.host(**changes), report, pause=0.05)


def _hashes(bundle: Path) -> dict[str, str]:
    """Of every file but the one that says how long it took."""
    return {name: entry.sha256 for name, entry in open_bundle(bundle).manifest.files.items() if name != _REPORT}


def test_the_whole_way_gives_what_finalize_gives_here(server: Server, tmp_path: Path, said: list[str]) -> None:
    """Two connections are lost: one while the kit is copied, one while the device builds."""
    kit = small_kit(tmp_path / "kit.dxb", ballast=_BALLAST)

    def report(stage: str, done: float | None) -> None:
        said.append(stage)
        if "build denoiser" in stage and server.cuts == before + 1:
            server.cut()

    before, server.cut_after = server.cuts, _BALLAST // 2
    remote = Remote(kit, server.host(), report, pause=0.05)
    assert remote.status().stage == "absent"
    remote.start()
    assert server.cuts == before + 1, "the copy was not cut"
    status = remote.follow()
    assert server.cuts == before + 2, "the build was not cut"
    out = remote.fetch(tmp_path / "there.dxb", status)

    resumed = [stage for stage in said if stage.startswith("connection lost")]
    assert len(resumed) >= 2 and all("try 1 of 6" in stage for stage in resumed)
    assert "build decoder (2 of 2)" in said and any(stage.startswith("golden test passed: 2 runs") for stage in said)
    assert sum(stage == "build denoiser-64x64 (1 of 2)" for stage in said) == 1, "the log was followed from where it broke off"
    here = finalize(kit, tmp_path / "here.dxb").path
    assert _hashes(out) == _hashes(here)
    assert dataclasses.replace(open_bundle(out).manifest, files={}) == dataclasses.replace(open_bundle(here).manifest, files={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.dxb", "kit.dxb", "there.dxb"]

    assert (status.stage, status.result_bytes) == ("done", out.stat().st_size)
    remote.clean()
    assert remote.status().stage == "absent" and not any((server.home / "cache/finalize").iterdir())


def test_as_typed_detached_and_attached(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kit = small_kit(tmp_path / "kit", ballast=1)  # a folder, which is packed on the way
    host = server.host()
    command = ["finalize", str(kit), "-o", str(tmp_path / "out.dxb"), "--ssh", f"{host.login}:{host.port}"]
    command += ["--ssh-command", " ".join(host.ssh), "--remote-dexport", host.dexport]
    assert main([*command, "--attach"]) == 2 and "expected a job that was started, got absent" in capsys.readouterr().err
    assert main([*command, "--detach"]) == 0 and capsys.readouterr().out.startswith(f"started on {host.login}; follow it")
    assert not (tmp_path / "out.dxb").exists()
    assert main([*command, "--status"]) == 0 and capsys.readouterr().out.startswith(("running: ", "done: "))
    assert main([*command, "--attach", "--clean"]) == 0
    assert f"finished on {host.login}, in " in capsys.readouterr().out
    assert not open_bundle(tmp_path / "out.dxb").manifest.is_kit


def test_a_job_is_killed_then_fails_and_goes_on_each_time(server: Server, tmp_path: Path, said: list[str]) -> None:
    kit = small_kit(tmp_path / "kit.dxb", golden_offset=100.0)
    remote = _remote(kit, server, said)
    remote.start()
    _kill_the_job(server)
    with pytest.raises(Failure, match="without a word: killed, or the device was switched off; run it again"):
        remote.follow()
    remote.start()
    with pytest.raises(Failure, match=r"127\.0\.0\.1: golden test: expected outputs as they were computed in PyTorch, got relative errors"):
        remote.follow()
    with pytest.raises(Failure, match="golden test"):
        remote.fetch(tmp_path / "out.dxb")
    remote.start(["--no-test"])  # the engines are there
    status = remote.follow()
    assert any("2 kept from before" in stage for stage in said)
    (tmp_path / f".out.dxb.{status.result[:16]}.part").write_bytes(bytes(status.result_bytes))
    with pytest.raises(Failure, match=r"out\.dxb: expected the bundle .*, got something else .*; run it again with --attach"):
        remote.fetch(tmp_path / "out.dxb", status)
    (tmp_path / "notes.dxb").write_text("mine")
    for out in (kit, tmp_path / "notes.dxb"):
        with pytest.raises(UserError, match=r"expected another name than the kit's|expected nothing there, or a bundle to replace"):
            remote.fetch(out, status)
    assert open_bundle(remote.fetch(tmp_path / "out.dxb", status))
    remote.clean()


def _kill_the_job(server: Server) -> None:
    """Kills the finalize that runs on the device, and waits until it is gone."""
    folder = str(server.home / "cache/finalize")
    running = [one for one in psutil.process_iter(["cmdline"]) if any(folder in word for word in one.info["cmdline"] or ())]
    job = next(one for one in running if "finalize" in one.info["cmdline"])
    job.kill()
    psutil.wait_procs([job], timeout=20)


def test_a_kit_for_another_device(server: Server, tmp_path: Path, said: list[str]) -> None:
    remote = _remote(small_kit(tmp_path / "kit.dxb", "jetson-orin@jetpack-6.2"), server, said)
    remote.start()
    with pytest.raises(
        DexportError, match=r"127\.0\.0\.1: this device: expected a Jetson AGX Orin 64GB with aarch64, .* got x86_64|with Jetson Linux 36"
    ):
        remote.follow()
    remote.clean()


def test_a_part_of_another_file_is_found_out(server: Server, tmp_path: Path, said: list[str]) -> None:
    kit = small_kit(tmp_path / "kit.dxb", ballast=3)
    remote = _remote(kit, server, said)
    folder = server.home / "cache/finalize" / open_bundle(kit).manifest.digest()
    folder.mkdir(parents=True)
    (folder / "kit.dxb.part").write_bytes(b"something else")
    with pytest.raises(Failure, match=r"copied kit: expected the kit as it was sent, got something else .*; run it again to copy it again"):
        remote.start()
    assert remote.status().stage == "absent"


def test_a_connection_that_stays_lost_names_what_to_do(server: Server, tmp_path: Path, said: list[str]) -> None:
    remote = _remote(small_kit(tmp_path / "kit.dxb"), server, said, port=1)
    with pytest.raises(
        ConnectionLost, match=r"127\.0\.0\.1: expected a connection, got .*refused.*; check that this works: ssh -F .* -p 1 "
    ):
        remote.status()
    remote.pause = 0.0
    with pytest.raises(Failure, match=r"got .*refused, 7 times; the device goes on by itself; continue with --attach"):
        remote.follow()


def _refused(remote: Remote) -> str:
    with pytest.raises(UserError) as caught:
        remote.start()
    return str(caught.value)


def test_hosts_that_cannot_be_used(server: Server, tmp_path: Path, said: list[str]) -> None:
    kit = small_kit(tmp_path / "kit.dxb")
    known, login = server.folder / "known_hosts", server.host().login
    text = known.read_text()
    try:
        known.write_text("")
        message = _refused(_remote(kit, server, said))
        assert f"{login}: expected a known host key, got an unknown one; run once by hand: ssh -F " in message
        assert f"-p {server.port} {login}, compare the fingerprint" in message
        other = " ".join((server.folder / "client_key.pub").read_text().split()[:2])
        known.write_text(f"[127.0.0.1]:{server.port} {other}\n")
        assert "expected the host key that is known, got another one; find out why" in _refused(_remote(kit, server, said))
    finally:
        known.write_text(text)
    strange = server.host().ssh + ("-o", "IdentityFile=/dev/null", "-o", "PubkeyAuthentication=no")
    assert "expected to be let in by a key, got " in _refused(_remote(kit, server, said, ssh=strange))
    assert "expected dexport, got nothing of that name" in _refused(_remote(kit, server, said, dexport="/no/dexport"))


def test_another_version_there_is_refused(server: Server, tmp_path: Path, said: list[str]) -> None:
    old = server.folder / "old"
    old.write_text('#!/bin/sh\necho \'{"dexport": "0.0.1", "stage": "absent"}\'\n')
    old.chmod(0o755)
    kit = small_kit(tmp_path / "kit.dxb")
    message = _refused(_remote(kit, server, said, dexport=str(old)))
    assert "127.0.0.1: dexport: expected version 0.1.0, got 0.0.1; install the same there: pip install dexport==0.1.0" in message
    old.write_text("#!/bin/sh\necho \"error: No such command 'finalize-job'.\" >&2\nexit 2\n")
    assert "expected dexport, got none, or an older one; install dexport there" in _refused(_remote(kit, server, said, dexport=str(old)))
    old.write_text("#!/bin/sh\necho welcome\n")
    with pytest.raises(Failure, match=r"127\.0\.0\.1: dexport: expected its answer, got welcome"):
        _remote(kit, server, said, dexport=str(old)).status()
