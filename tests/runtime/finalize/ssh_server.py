"""An OpenSSH server on a free port of this machine, as the current user, with keys and configuration of its own in one folder.

It stands for a device: dexport there has its own home, cache and trust. Connections to it go through a relay of ours, so that a test
can cut one at a chosen byte or moment.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dexport.runtime.finalize.ssh import Host

_SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
_ROOT = Path(__file__).parents[3]


@dataclass
class Server:
    """The device and the way to it.

    Attributes:
        folder: of everything; `home` in it is the device's.
        port: of the relay, where clients connect.
        cut_after: cut the next connection when it has carried so many bytes to the device; None for never.
        cuts: connections cut so far.
    """

    folder: Path
    port: int
    cut_after: int | None = None
    cuts: int = 0
    _open: list[socket.socket] = field(default_factory=list)

    def host(self, **changes: object) -> Host:
        """How to get there."""
        ssh = ("ssh", "-F", str(self.folder / "client_config"))
        values: dict[str, object] = {"login": f"{getpass.getuser()}@127.0.0.1", "port": self.port, "ssh": ssh, "dexport": str(self.dexport)}
        return Host(**{**values, **changes})  # type: ignore[arg-type]

    @property
    def dexport(self) -> Path:
        """The command on the device."""
        return self.folder / "dexport"

    @property
    def home(self) -> Path:
        """The device's home folder."""
        return self.folder / "home"

    def cut(self) -> None:
        """Cuts every open connection, as a network does that is gone."""
        self.cuts += 1
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()


def has_ssh() -> bool:
    """Whether OpenSSH's server and client are installed."""
    return None not in (_SSHD, shutil.which("ssh"), shutil.which("ssh-keygen"))


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[Server]:
    """Starts it; skips the test where that is not possible."""
    if _SSHD is None or not has_ssh():
        pytest.skip("no OpenSSH server here: on Debian or Ubuntu, sudo apt-get install openssh-server")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where root's sshd locks itself in; the system's service makes it too
    for key in ("host_key", "client_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    listener, inner = socket.create_server(("127.0.0.1", 0)), _free_port()
    server = Server(folder, listener.getsockname()[1])
    _configure(server, inner)
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen([_SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stdout=log, stderr=log)
    try:
        _wait_for(inner, process, folder / "sshd.log")
        threading.Thread(target=_relay, args=(server, listener, inner), daemon=True).start()
        yield server
    finally:
        server.cut()
        listener.close()
        process.terminate()
        process.wait()


def _configure(server: Server, inner: int) -> None:
    folder = server.folder
    server.home.mkdir()
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{inner}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/client_key.pub\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )
    public = " ".join((folder / "host_key.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {public}\n")
    (folder / "client_config").write_text(
        f"IdentityFile {folder}/client_key\nIdentitiesOnly yes\nIdentityAgent none\n"
        f"UserKnownHostsFile {folder}/known_hosts\nGlobalKnownHostsFile /dev/null\n"
    )
    environment = {
        "HOME": server.home,
        "XDG_CONFIG_HOME": server.home / "config",
        "DEXPORT_CACHE_DIR": server.home / "cache",
        "PYTHONPATH": _ROOT,
        "OMP_NUM_THREADS": 1,
    }
    words = " ".join(f"{name}={value}" for name, value in environment.items())
    server.dexport.write_text(f'#!/bin/sh\nexec env {words} {sys.executable} -m dexport "$@"\n')
    server.dexport.chmod(0o755)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    process.kill()
    process.wait()
    pytest.skip(f"no OpenSSH server can be started here: {log.read_text(errors='replace').strip()}")


def _relay(server: Server, listener: socket.socket, inner: int) -> None:
    with contextlib.suppress(OSError):  # the listener is closed at the end
        while True:
            client = listener.accept()[0]
            device = socket.create_connection(("127.0.0.1", inner))
            server._open += [client, device]
            for source, target, counted in ((client, device, True), (device, client, False)):
                threading.Thread(target=_pump, args=(server, source, target, counted), daemon=True).start()


def _pump(server: Server, source: socket.socket, target: socket.socket, counted: bool) -> None:
    carried = 0
    with contextlib.suppress(OSError):
        while chunk := source.recv(1 << 14):
            target.sendall(chunk)
            carried += len(chunk)
            if counted and server.cut_after is not None and carried > server.cut_after:
                server.cut_after = None
                server.cut()
        target.shutdown(socket.SHUT_WR)
