"""Where a model comes from, and the hash that a bundle keeps of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dexport.errors import UserError
from dexport.exporter.source import local_directory, source_hash


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_directory(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_directory("~") == tmp_path


@pytest.mark.parametrize("model", ["./a/b", "/a/b", "a/b/c", "a", "a b/c", ""])
def test_what_is_neither_a_directory_nor_an_id_is_refused(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if model == "":
        assert local_directory(model) == Path()
        return
    with pytest.raises(UserError, match=r"expected a diffusers pipeline directory, got no such directory; give the directory that"):
        local_directory(model)


def test_an_id_that_cannot_be_downloaded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = r"nobody/nothing: expected a local directory or a hub id, got no such directory, and the hub says: .+; check the id and the"
    with pytest.raises(UserError, match=message):
        local_directory("nobody/nothing")


def test_the_hash_sees_configurations_names_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    config, weights = tmp_path / "vae" / "config.json", tmp_path / "vae" / "model.safetensors"
    config.write_text("{}")
    weights.write_bytes(b"12")
    seen = {source_hash(tmp_path)}
    config.write_text("[]")
    seen.add(source_hash(tmp_path))
    weights.write_bytes(b"123")
    seen.add(source_hash(tmp_path))
    weights.rename(weights.with_name("other.safetensors"))
    seen.add(source_hash(tmp_path))
    assert len(seen) == 4
    assert source_hash(tmp_path) in seen
