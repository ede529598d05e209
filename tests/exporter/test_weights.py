"""Checkpoints: what is read, and what is said of files that cannot be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dexport.errors import UserError
from dexport.exporter.weights import match_names, open_checkpoint, read_header, weight_of

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "c": torch.tensor(7),
    "d": torch.zeros(0, 4, dtype=torch.float16),
    "e": torch.tensor([True, False]),
}


def _shards(folder: Path, index: str = "model.safetensors.index.json") -> Path:
    names = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    for name, file in names.items():
        save_file({name: TENSORS[name]}, folder / file)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def test_tensors_come_back_as_stored(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", {"format": "pt"})
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint) == set(TENSORS)
    for name, tensor in TENSORS.items():
        read = checkpoint[name].read()
        assert read.dtype is tensor.dtype and torch.equal(read, tensor)


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "model.safetensors.index.fp16.json"])
def test_shards_are_one_checkpoint(tmp_path: Path, index: str) -> None:
    assert set(open_checkpoint(_shards(tmp_path, index))) == {"a", "b"}


def test_a_variant_is_read_only_where_there_is_no_other(tmp_path: Path) -> None:
    save_file({"narrow": TENSORS["b"]}, tmp_path / "model.fp16.safetensors")
    assert set(open_checkpoint(tmp_path)) == {"narrow"}
    save_file({"wide": TENSORS["a"]}, tmp_path / "model.safetensors")
    assert set(open_checkpoint(tmp_path)) == {"wide"}


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (_shards(tmp_path) / "model-2.safetensors").unlink()
    message = r"model-2.safetensors: expected a shard that model.safetensors.index.json lists, got no such file; download the missing shard"
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["no json", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_refused(tmp_path: Path, content: str) -> None:
    (_shards(tmp_path) / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"index.json: expected an index with a weight_map, got something else; download the file again"):
        open_checkpoint(tmp_path)


def test_a_truncated_file_is_refused_before_any_work(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": TENSORS["a"]}, file)
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match=rf"expected at least {size} bytes, got {size - 4}; the file is truncated: download it again"):
        open_checkpoint(tmp_path)


def test_a_file_that_shrinks_later_is_refused_when_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": TENSORS["a"]}, file)
    stored = open_checkpoint(tmp_path)["a"]
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match="the file is truncated"):
        stored.read()


def _header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"\xff" * 16, "a header of 18446744073709551615 bytes in a file of 16"),
        (_header("{") + b" ", "an unreadable header"),
        (_header("[]"), "an unreadable header"),
        (_header('{"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}}') + b"0000", "an unreadable header ('F4')"),
        (_header('{"a": {"shape": [1], "data_offsets": [0, 4]}}') + b"0000", "an unreadable header ('dtype')"),
        (_header('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}') + b"0000", "(4 bytes for [2] of F32)"),
        (_header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}') + b"0000", "(4 bytes for [1] of F32)"),
    ],
)
def test_a_broken_header_is_refused(tmp_path: Path, content: bytes, got: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=f"expected a safetensors file, got .*{re.escape(got)}.*; download the file again"):
        read_header(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("make", "got"),
    [(lambda folder: None, "no weights"), (lambda folder: (folder / "model.bin").write_bytes(b"pickle"), "only model.bin")],
)
def test_a_folder_without_safetensors_is_refused(tmp_path: Path, make: Callable[[Path], Any], got: str) -> None:
    make(tmp_path)
    message = rf"expected \*.safetensors weights, got {got}; save the pipeline with save_pretrained\(safe_serialization=True\)"
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path)


def test_names_of_other_library_versions_are_found(tmp_path: Path) -> None:
    save_file({"text_model.x.weight": TENSORS["a"], "text_model.y": TENSORS["b"]}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert match_names(["x.weight", "y"], checkpoint, {}, "here") == {"x.weight": "text_model.x.weight", "y": "text_model.y"}
    more = ["model.text_model.x.weight", "model.text_model.y"]
    assert set(match_names(more, checkpoint, {}, "here").values()) == set(checkpoint)


def test_tied_names_are_stored_once(tmp_path: Path) -> None:
    save_file({"shared": TENSORS["a"]}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert match_names(["shared", "embedding"], checkpoint, {"embedding": "shared"}, "here")["embedding"] == "shared"
    with pytest.raises(UserError, match="here: expected a tensor named other, got 1 tensors without it; check that weights and config"):
        match_names(["other"], checkpoint, {}, "here")


def test_a_weight_has_the_dtype_asked_for_and_the_shape_of_the_configuration(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    stored = open_checkpoint(tmp_path)["a"]
    weight = weight_of(stored, "a", (2, 3), torch.bfloat16)
    assert weight.load().dtype is torch.bfloat16 and weight.nbytes == 12
    with pytest.raises(UserError, match=re.escape("a: expected shape (3, 2) (config.json), got (2, 3); check that weights and")):
        weight_of(stored, "a", (3, 2), torch.float32)
