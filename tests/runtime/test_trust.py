import stat
from pathlib import Path

import pytest

from dexport.errors import UserError
from dexport.runtime.trust import default_trust_file, trust, trusted_hashes

A, B = "a" * 64, "b" * 64


def test_no_file_trusts_nothing(tmp_path: Path) -> None:
    assert trusted_hashes(tmp_path / "trusted-code") == frozenset()


def test_trust_is_added_once_and_withdrawn_by_deleting_a_line(tmp_path: Path) -> None:
    file = tmp_path / "dexport" / "trusted-code"
    trust({A: "loop.plan"}, file)
    trust({A: "again", B: "two\nlines"}, file)
    assert file.read_text() == f"{A}  loop.plan\n{B}  two\\nlines\n"
    assert trusted_hashes(file) == {A, B}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text(f"# mine\n\n{B}\n")
    assert trusted_hashes(file) == {B}


def test_a_file_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "trusted-code"
    trust({A: "loop.plan"}, file)
    file.chmod(0o620)
    with pytest.raises(UserError, match=r"trusted-code: expected a file that only its owner can write to, got mode 620; .*chmod 600"):
        trusted_hashes(file)


@pytest.mark.parametrize("line", ["trust everything", "A" * 64, "a" * 63, f"{A}{B}", f"{A}x"])
def test_a_line_that_is_no_hash_is_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "trusted-code"
    file.write_text(f"{B}\n{line}\n")
    file.chmod(0o600)
    with pytest.raises(UserError, match=f"trusted-code:2: expected a sha256 and a comment, got '{line[:40]}.*; delete the line"):
        trusted_hashes(file)


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "trusted-code"
    file.touch(mode=0o600)
    with file.open("r+b") as out:
        out.truncate(5 << 20)
    with pytest.raises(UserError, match=r"trusted-code: expected at most 4194304 bytes, got 5242880; delete what is not needed"):
        trusted_hashes(file)


def test_the_default_file_is_in_the_configuration_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_trust_file() == tmp_path / "dexport" / "trusted-code"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_trust_file() == tmp_path / ".config" / "dexport" / "trusted-code"
