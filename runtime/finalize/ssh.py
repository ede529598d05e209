"""Runs dexport on another machine through the system's OpenSSH client, with bytes in and out of it.

The client and not a library: it brings the user's configuration, agent, jump hosts and known hosts, and nothing to install.
Host keys are always checked strictly, nothing is ever asked on the terminal, and a silent connection is given up after half a
minute. Files travel through the standard input and output of dexport there, so that neither scp nor sftp nor rsync is needed.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dexport.errors import DexportError, Failure, UserError
from dexport.runtime.strict_json import shown

_OPTIONS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "ClearAllForwardings=yes",
    "ConnectTimeout=15",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
)
_ADDRESS = re.compile(
    r"(?P<login>(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?(?:[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\]))(?::(?P<port>[0-9]{1,5}))?"
)
_ERROR = "error: "
_PARTS = re.compile(r"(?P<where>.*?): expected (?P<expected>.*?), got (?P<got>.*); (?P<fix>.*)")
_SSH_FAILED, _NOT_FOUND = 255, (126, 127)
_CHUNK_BYTES = 1 << 18
_MOST_SHOWN = 4000


class ConnectionLost(Failure):
    """The connection could not be made or broke off; trying again may help."""


@dataclass(frozen=True)
class Host:
    """A machine that runs dexport.

    Attributes:
        login: "user@host" or "host".
        port: None for what ssh's configuration says.
        ssh: the client's command and further arguments of it.
        dexport: what to run there.
    """

    login: str
    port: int | None = None
    ssh: tuple[str, ...] = ("ssh",)
    dexport: str = "dexport"

    def call(self, *arguments: str, send: Iterable[bytes] = (), receive: Callable[[bytes], object] = lambda chunk: None) -> None:
        """Runs one dexport command there.

        Args:
            send: for its standard input.
            receive: called with pieces of its standard output.

        Raises:
            ConnectionLost: see there.
            UserError: the host's key is not known, it refuses us, or there is no dexport; or dexport's own, from there.
            Failure: dexport's own, from there; no ssh on this machine.
        """
        with tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(self._command(arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
            except OSError as error:
                got, fix = f"{error.strerror}", "install the OpenSSH client, or name it with --ssh-command"
                raise Failure(self.ssh[0], expected="a program", got=got, fix=fix) from error
            try:
                _exchange(process, send, receive)
            except BaseException:
                process.kill()
                process.wait()
                raise
            errors.seek(0)
            self._check(process.wait(), errors.read().decode(errors="replace"))

    def _command(self, arguments: Iterable[str]) -> list[str]:
        options = [word for option in _OPTIONS for word in ("-o", option)]
        port = [] if self.port is None else ["-p", str(self.port)]
        remote = " ".join((shlex.quote(self.dexport), *map(shlex.quote, arguments)))
        return [*self.ssh, "-T", *options, *port, "--", self.login, remote]

    def _check(self, code: int, said: str) -> None:
        if code == 0:
            return
        lines = [shown(line.strip(), _MOST_SHOWN) for line in said.splitlines() if line.strip()]
        if code == _SSH_FAILED or code < 0:
            raise self._refused(said, lines[-1] if lines else f"exit status {code}")
        if code in _NOT_FOUND or "No such command" in said:
            got = "none, or an older one" if "No such command" in said else f"nothing of that name ({lines[-1] if lines else code})"
            fix = "install dexport there (`dexport doctor` says what is missing) or name it with --remote-dexport PATH"
            raise UserError(f"{self.login}: {self.dexport}", expected="dexport", got=got, fix=fix)
        raise self._theirs(lines, code)

    def _refused(self, said: str, last: str) -> DexportError:
        command = shlex.join([*self.ssh, *([] if self.port is None else ["-p", str(self.port)]), self.login])
        if "HOST IDENTIFICATION HAS CHANGED" in said:
            fix = "find out why (a device that was flashed has a new one), and only then remove the old key with ssh-keygen -R"
            return UserError(self.login, expected="the host key that is known", got="another one", fix=fix)
        if "Host key verification failed" in said:
            fix = f"run once by hand: {command}, compare the fingerprint that it shows with the device's, and accept it"
            return UserError(self.login, expected="a known host key", got="an unknown one", fix=fix)
        if "Permission denied" in said:
            fix = f"let a key in with ssh-copy-id, load it with ssh-add, and check that this asks nothing: {command}"
            return UserError(self.login, expected="to be let in by a key", got=last, fix=fix)
        return ConnectionLost(self.login, expected="a connection", got=last, fix=f"check that this works: {command}")

    def _theirs(self, lines: list[str], code: int) -> DexportError:
        """An error of dexport there, as one of ours."""
        said = next((line for line in reversed(lines) if line.startswith(_ERROR)), lines[-1] if lines else f"exit status {code}")
        return error_from(self.login, said.removeprefix(_ERROR), UserError if code == UserError.exit_code else Failure)


def error_from(where: str, said: str, kind: type[DexportError]) -> DexportError:
    """An error that another machine has told in one line, with that machine in front."""
    found = _PARTS.fullmatch(said)
    if found is None:
        return kind(where, expected="dexport to do it there", got=said, fix="log in and look")
    return kind(f"{where}: {found['where']}", expected=found["expected"], got=found["got"], fix=found["fix"])


def parse_host(text: str, ssh: str = "ssh", dexport: str = "dexport") -> Host:
    """Reads "[user@]host[:port]".

    Raises:
        UserError: it is something else, such as an option for ssh.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise UserError("--ssh", expected="[USER@]HOST[:PORT]", got=repr(text), fix="put everything else into ~/.ssh/config")
    login = match["login"].replace("[", "").replace("]", "")
    return Host(login, int(match["port"]) if match["port"] else None, tuple(shlex.split(ssh)), dexport)


def _exchange(process: subprocess.Popen[bytes], send: Iterable[bytes], receive: Callable[[bytes], object]) -> None:
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:  # if it ends too early, its exit status says why
        for chunk in send:
            stdin.write(chunk)
    while chunk := process.stdout.read1(_CHUNK_BYTES):  # type: ignore[attr-defined]
        receive(chunk)
