"""Libraries of plugins are loaded before the engine, and only those that are trusted, undamaged and for this machine.

There is no TensorRT here: a stand-in for its package notes what is asked of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dexport.errors import DexportError, Failure, UserError
from dexport.runtime.backends import tensorrt as backend
from dexport.runtime.backends.tensorrt_plugins import PluginLibrary, load_plugins
from dexport.runtime.bundle import open_bundle
from dexport.runtime.bundle_writer import trust_own_code
from dexport.runtime.engines import open_engine
from tests.runtime.sample_bundle import PLAN, edited_manifest, sample_files, write_sample

LIBRARY = "plugins/libdexport_one.so"


class Watcher:
    """A runtime of TensorRT that notes calls; `handle` is what a library becomes."""

    def __init__(self, handle: object = "handle") -> None:
        self.calls: list[tuple[str, str]] = []
        self._handle = handle

    def get_plugin_registry(self) -> Watcher:
        return self

    def load_library(self, path: str) -> object:
        assert Path(path).parent.stat().st_mode & 0o077 == 0, "nobody else can put another file there"
        self.calls.append(("load", Path(path).read_text(encoding="utf-8")))
        return self._handle

    def deserialize_cuda_engine(self, plan: Any) -> None:
        self.calls.append(("deserialize", bytes(plan).decode()))


@pytest.fixture
def library() -> PluginLibrary:
    return PluginLibrary(b"machine code of a plugin", "x.dxb: plugin one", 87, "10.3.0")


def _load(runtime: Watcher, library: PluginLibrary, sm: int = 87, version: str = "10.3.0.30", errors: tuple[str, ...] = ()) -> None:
    class Log(list[str]):
        def clear(self) -> None:
            super().clear()
            self += errors

    load_plugins(runtime, [library], sm=sm, version=version, errors=Log(["old"]))


def test_a_library_for_this_machine_is_loaded(library: PluginLibrary) -> None:
    runtime = Watcher()
    _load(runtime, library)
    _load(runtime, library, version="10.16.2")
    assert runtime.calls == [("load", "machine code of a plugin")] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sm": 110}, "x.dxb: plugin one: expected a plugin for this GPU (SM110), got one for SM87; finalize the kit on this machine"),
        ({"version": "11.1.0"}, "x.dxb: plugin one: expected a plugin for TensorRT 11.1.0, got one for 10.3.0; finalize the kit on"),
    ],
)
def test_a_library_for_another_machine_is_not_loaded(library: PluginLibrary, changes: dict[str, Any], message: str) -> None:
    runtime = Watcher()
    with pytest.raises(UserError) as caught:
        _load(runtime, library, **changes)
    assert message in str(caught.value) and not runtime.calls


def test_what_tensorrt_says_against_a_library_arrives(library: PluginLibrary) -> None:
    with pytest.raises(Failure) as caught:
        _load(Watcher(handle=None), library, errors=("undefined symbol:\n getCreators",))
    assert "plugin one: expected a library that TensorRT takes, got undefined symbol: getCreators; finalize" in str(caught.value)
    with pytest.raises(Failure, match="got a refusal without a reason"):
        _load(Watcher(handle=None), library)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Watcher:
    """The stand-in, on an Orin; a cache and a trust file of one's own."""
    made, errors = Watcher(), SimpleNamespace(errors=[])
    package = SimpleNamespace(Runtime=lambda log: made, __version__="10.3.0")
    device = SimpleNamespace(sm=87, use=lambda: None, close=lambda: None)
    monkeypatch.setattr(backend, "_module", lambda *names: package)
    monkeypatch.setattr(backend, "_log", lambda trt: errors)
    monkeypatch.setattr(backend, "CudaDevice", lambda: device)
    monkeypatch.setenv("DEXPORT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return made


def _bundle(tmp_path: Path, name: str, **changes: Any) -> Path:
    """The sample with a library of one plugin."""
    plugin = {"name": "one", "files": [LIBRARY], "sm": 87, "tensorrt": "10.3.0", **changes}
    return write_sample(tmp_path / name, more={LIBRARY: b"machine code of a plugin"}, plugins=[plugin])


def _refused(path: Path, **options: Any) -> str:
    with pytest.raises(DexportError) as caught:
        open_engine(open_bundle(path, **options), "decoder", (64, 64))
    return str(caught.value)


@pytest.mark.parametrize("name", ["bundle", "bundle.dxb"])
def test_plugins_of_a_bundle_come_before_its_engine(tmp_path: Path, runtime: Watcher, name: str) -> None:
    """The plan is none, so that TensorRT refuses it in the end."""
    path = _bundle(tmp_path, name)
    assert "libdexport_one.so: expected machine code that was built on this machine or that you trust" in _refused_library(path)
    assert not runtime.calls
    assert "an engine for this GPU" in _refused(path, trust=True)
    trust_own_code(path)
    assert "an engine for this GPU" in _refused(path)
    assert runtime.calls == [("load", "machine code of a plugin"), ("deserialize", "machine code")] * 2


def _refused_library(path: Path) -> str:
    """What is said if the plan alone is trusted."""
    from dexport.runtime.trust import default_trust_file, trust

    trust({open_bundle(path).manifest.files[PLAN].sha256: "the plan"}, default_trust_file())
    return _refused(path)


def test_a_library_that_is_gone_changed_or_for_others_is_told(tmp_path: Path, runtime: Watcher) -> None:
    assert "plugin one: expected a plugin for this GPU (SM87), got one for SM110" in _refused(_bundle(tmp_path, "a", sm=110), trust=True)
    path = _bundle(tmp_path, "bundle")
    trust_own_code(path)
    (path / LIBRARY).write_text("malicious code of a plug")
    assert "libdexport_one.so: expected sha256 " in _refused(path)
    assert "libdexport_one.so: expected sha256 " in _refused(path, verify="sizes")
    (path / LIBRARY).unlink()
    assert "libdexport_one.so: expected a file of 24 bytes, got no such file" in _refused(path)
    assert not runtime.calls


def test_a_library_outside_of_the_bundle_is_refused(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "bundle")
    plugin = {"name": "one", "files": ["../one.so"], "sm": 87, "tensorrt": "10.3.0"}
    (path / "manifest.json").write_bytes(edited_manifest(lambda document: document.update(plugins=[plugin])))
    with pytest.raises(UserError, match=r"plugins.0.files.0: expected a plain relative path .*, got '../one.so'"):
        open_bundle(path)
    assert json.loads((path / "manifest.json").read_bytes())["files"].keys() == sample_files().keys()
