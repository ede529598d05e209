"""Which compiled form of a component serves a request, and what is said where none does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dexport.errors import UserError
from dexport.runtime.bundle import Bundle, open_bundle
from dexport.runtime.engines import compile_cache, open_engine, variant_for
from tests.runtime.sample_bundle import LOOP, PLAN, edited_manifest, write_sample


def _sample(folder: Path, edit: Callable[[dict[str, Any]], object] = lambda document: None) -> Bundle:
    path = write_sample(folder / "bundle")
    (path / "manifest.json").write_bytes(edited_manifest(edit))
    return open_bundle(path, trust=True)


def test_a_variant_serves_its_size_or_every_size(tmp_path: Path) -> None:
    bundle = _sample(tmp_path)
    assert variant_for(bundle, "loop", (64, 64)).artifact == LOOP
    assert variant_for(bundle, "decoder", (999, 1)).artifact == PLAN
    with pytest.raises(UserError, match=r"bundle: loop: expected a size among 64x64, got 64x32; rebuild with --size"):
        variant_for(bundle, "loop", (64, 32))


def test_a_build_kit_says_how_to_finish_it(tmp_path: Path) -> None:
    def make_kit(document: dict[str, Any]) -> None:
        document["components"]["loop"]["variants"][0]["format"] = "tensorrt-kit"

    message = r"loop: expected engines, got a build kit for a device; run on the device: dexport finalize .*bundle"
    with pytest.raises(UserError, match=message):
        open_engine(_sample(tmp_path, make_kit), "loop", (64, 64))


def test_compiled_models_lie_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEXPORT_CACHE_DIR", str(tmp_path / "cache"))
    assert compile_cache() == tmp_path / "cache" / "compiled" and compile_cache().is_dir()
    monkeypatch.delenv("DEXPORT_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compile_cache() == tmp_path / ".cache" / "dexport" / "compiled"
