"""Addresses, and errors of another machine in our words; connections themselves are in test_remote.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from dexport.errors import DexportError, Failure, UserError
from dexport.runtime.finalize.ssh import Host, error_from, parse_host


@pytest.mark.parametrize(
    ("text", "login", "port"),
    [
        ("orin", "orin", None),
        ("nvidia@orin.local", "nvidia@orin.local", None),
        ("nvidia@10.0.0.7:2222", "nvidia@10.0.0.7", 2222),
        ("me@[fe80::1]:22", "me@fe80::1", 22),
    ],
)
def test_addresses(text: str, login: str, port: int | None) -> None:
    assert parse_host(text, "ssh -J gate", "/opt/dexport") == Host(login, port, ("ssh", "-J", "gate"), "/opt/dexport")


@pytest.mark.parametrize("text", ["", "-oProxyCommand=x", "me@-x", "a b", "host:port", "host;ls", "a@b@c", "[::1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UserError, match=r"--ssh: expected \[USER@\]HOST\[:PORT\], got "):
        parse_host(text)


def test_errors_of_another_machine_keep_their_parts() -> None:
    original = Failure("disk: here", expected="1 byte, got or not", got="none; really", fix="free some")
    told = error_from("orin", str(original), Failure)
    assert str(told) == f"orin: {original}" and told.fix == "free some"
    assert str(error_from("orin", "Segmentation fault", UserError)) == (
        "orin: expected dexport to do it there, got Segmentation fault; log in and look"
    )


@pytest.mark.parametrize("code", [2, 1, 255, 127])
def test_what_another_machine_says_cannot_steer_the_terminal(tmp_path: Path, code: int) -> None:
    client = tmp_path / "ssh"
    client.write_text(f"#!/bin/sh\nprintf 'error: a: expected b, got \\033[2Jc; d' >&2\nexit {code}\n")
    client.chmod(0o755)
    with pytest.raises(DexportError) as caught:
        Host("orin", ssh=(str(client),)).call("finalize-job")
    assert "\\x1b[2Jc" in str(caught.value) and str(caught.value).isprintable()


def test_a_machine_without_an_ssh_client() -> None:
    with pytest.raises(Failure, match="no-such-ssh: expected a program, got No such file or directory; install the OpenSSH client"):
        Host("orin", ssh=("no-such-ssh",)).call("finalize-job")
