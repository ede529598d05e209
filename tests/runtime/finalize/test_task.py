"""Which engines a kit needs: one for equal models, names that cannot collide, and kits that nobody here can build."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dexport.errors import Failure
from dexport.runtime.builders.openvino import OpenVinoBuilder
from dexport.runtime.bundle import open_bundle
from dexport.runtime.device import Device
from dexport.runtime.finalize.task import builder_for, tasks_of
from dexport.runtime.manifest import Manifest, Variant
from tests.runtime.finalize.small_kit import small_kit


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return open_bundle(small_kit(tmp_path / "kit"), verify="sizes").manifest


def _with(manifest: Manifest, **changes: object) -> Manifest:
    """The decoder's variant changed."""
    decoder = manifest.components["decoder"]
    variant: Variant = dataclasses.replace(decoder.variants[0], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(manifest, components={**manifest.components, "decoder": dataclasses.replace(decoder, variants=(variant,))})


def test_equal_models_are_one_task(manifest: Manifest) -> None:
    tasks = list(tasks_of(manifest, OpenVinoBuilder()).values())
    assert [task.name for task in tasks] == ["denoiser-64x64", "decoder"]
    assert tasks[1].files == ("graphs/decoder.onnx", "graphs/decoder.data") and tasks[1].bytes > 64 * 64
    assert [product.precision for task in tasks for product in task.asked] == ["fp32", "int8"]


def test_the_tools_are_part_of_the_key(manifest: Manifest) -> None:
    first, second = (tasks_of(manifest, OpenVinoBuilder(tools={"openvino": version})) for version in ("1", "2"))
    assert not set(first) & set(second)


def test_the_version_of_dexport_is_part_of_the_key(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = OpenVinoBuilder()
    first = tasks_of(manifest, builder)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9.9")
    assert not set(first) & set(tasks_of(manifest, builder))


def test_different_models_of_one_name_get_two(manifest: Manifest) -> None:
    renamed = {"other/denoiser-64x64.onnx": manifest.files["graphs/decoder.onnx"], **manifest.files}
    other = _with(manifest, artifact="other/denoiser-64x64.onnx", files=("other/denoiser-64x64.onnx",))
    names = [task.name for task in tasks_of(dataclasses.replace(other, files=renamed), OpenVinoBuilder()).values()]
    assert len(set(names)) == 2 and all(name.startswith("denoiser-64x64-") for name in names)


def test_a_kit_of_two_kinds_is_refused(manifest: Manifest) -> None:
    with pytest.raises(Failure, match="expected a kit for one backend, got openvino-kit and tensorrt-kit"):
        builder_for(_with(manifest, format="tensorrt-kit"), Device("x86_64"))
