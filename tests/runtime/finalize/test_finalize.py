"""A kit becomes a finished bundle: for real with OpenVINO, and for TensorRT with a stand-in for trtexec that shows the commands.

No engine is built with TensorRT here: the stand-in accepts exactly the flags that trtexec of TensorRT 10.3 has, and writes files
in the form in which trtexec writes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dexport.errors import DexportError, Failure, UserError
from dexport.runtime.backends.openvino import int8_is_exact
from dexport.runtime.bundle import open_bundle
from dexport.runtime.device import Device
from dexport.runtime.engines import open_engine
from dexport.runtime.finalize.finalize import Finished, finalize
from dexport.runtime.finalize.work import RECORD
from dexport.runtime.trust import default_trust_file, trusted_hashes
from tests.runtime.finalize.small_kit import PROFILE, WIDTH, small_kit, without_golden
from tests.runtime.small_disk import run_on_small_disk

ORIN = Device("aarch64", "NVIDIA Jetson Orin Nano", "36.4.3", 87, "MAXN_SUPER", ("GPU MaxFreq=1020000000",))

TRTEXEC = """#!/usr/bin/env bash
set -eu
if [[ "$1" == --help ]]; then echo "&&&& RUNNING TensorRT.trtexec [TensorRT v$VERSION] # trtexec"; exit 0; fi
echo "$*" >>"$CALLS"
for flag in "$@"; do
  case "$flag" in
    --onnx=*) [[ -s "${flag#*=}" ]] || exit 3 ;;
    --saveEngine=*) engine="${flag#*=}" ;;
    --exportLayerInfo=*) layers="${flag#*=}" ;;
    --timingCacheFile=*) echo cache >"${flag#*=}" ;;
    --stronglyTyped | --skipInference | --profilingVerbosity=detailed | --memPoolSize=workspace:*M) ;;
    --profile=* | --minShapes=* | --optShapes=* | --maxShapes=*) ;;
    --dynamicPlugins=*) [[ "$(cat "${flag#*=}")" == "library "* ]] || { echo "Error: no library ${flag#*=}"; exit 4; } ;;
    *) echo "unknown option $flag"; exit 2 ;;
  esac
done
[[ "$engine" != *"${FAIL:-nothing}"* ]] || { echo "Error: out of memory"; exit 1; }
printf 'plan of %s' "$(basename "$engine")" >"$engine"
printf '{"Layers": [{"Name": "a", "LayerType": "gemm", "Inputs": [{"Name": "x", "Format/Datatype": "Half"}],
  "TacticName": "sm80_xmma_gemm_f16f16_f16f16_f16_tn", "Metadata": "[ONNX Layer: quantized_product]"}], "Bindings": ["x", "y"]}' >"$layers"
"""


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return small_kit(tmp_path / "kit.dxb")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A kit that OpenVINO has finished."""
    folder = tmp_path_factory.mktemp("finished")
    return finalize(small_kit(folder / "kit.dxb"), folder / "out.dxb")


@pytest.fixture
def trtexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Puts the stand-in where it is found; gives the commands with which it was called."""
    program, calls = tmp_path / "trtexec", tmp_path / "calls"
    program.write_text(TRTEXEC)
    program.chmod(0o755)
    monkeypatch.setenv("TRTEXEC", str(program))
    monkeypatch.setenv("CALLS", str(calls))
    monkeypatch.setenv("VERSION", "100300")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("DEXPORT_CACHE_DIR", str(tmp_path / "cache"))
    return lambda: calls.read_text().splitlines() if calls.exists() else []


def _stop_at(text: str) -> Callable[[str, float | None], None]:
    def report(stage: str, done: float | None) -> None:
        if text in stage:
            raise KeyboardInterrupt

    return report


def test_a_kit_becomes_a_bundle_that_runs(finished: Finished) -> None:
    assert finished.built == ("denoiser-64x64", "decoder") and not finished.kept
    assert [check.name for check in finished.checks] == ["denoiser", "decoder"] and all(check.passed for check in finished.checks)
    bundle = open_bundle(finished.path)
    manifest = bundle.manifest
    assert manifest.backend == "openvino" and not manifest.is_kit and not manifest.native_files()
    small, large = manifest.components["denoiser"].variants
    assert small.files == large.files == ("engines/denoiser-64x64.xml", "engines/denoiser-64x64.bin")  # the same model, built once
    assert not [file for file in manifest.files if file.startswith("graphs/")]
    x = np.ones((3, WIDTH), np.float32)
    engine = open_engine(bundle, "denoiser", (64, 128))
    assert engine({"x": x})["y"].shape == (3, WIDTH)
    engine.close()
    record = json.loads(bundle.read_bytes("report/finalize.json"))
    assert record["engines"]["decoder"]["peak_memory_bytes"] > 10 << 20 and record["engines"]["decoder"]["least_free_memory_bytes"] > 0
    assert record["tools"]["openvino"] and record["device"]["machine"] == os.uname().machine
    assert sorted(path.name for path in finished.path.parent.iterdir()) == ["kit.dxb", "out.dxb"]


def test_products_that_fall_back_are_reported(finished: Finished) -> None:
    bundle = open_bundle(finished.path)
    kernels = bundle.manifest.components["decoder"].variants[0].kernels
    assert kernels is not None and kernels["not_named"] == 0
    if int8_is_exact():
        assert kernels["products"] == {"int8": 1} and not kernels["fallbacks"] and not finished.warnings
    else:  # the backend computes the codes in fp32 there, which is right but not what was asked
        assert kernels["fallbacks"] == [{"node": "quantized_product", "asked": "int8", "got": "fp32"}]
        warning = "decoder: products fell back: 1 asked for int8 but computed in fp32 (quantized_product)"
        assert finished.warnings == (warning,)
        assert json.loads(bundle.read_bytes("report/finalize.json"))["warnings"] == [warning]


def test_an_interrupted_finalize_goes_on_where_it_stopped(kit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.dxb"
    with pytest.raises(KeyboardInterrupt):
        finalize(kit, out, report=_stop_at("build decoder"))
    assert not out.exists()
    with pytest.raises(KeyboardInterrupt):
        finalize(kit, out, report=_stop_at("test against"))
    assert not out.exists()
    again = finalize(kit, out)
    assert again.kept == ("denoiser-64x64", "decoder") and not again.built and open_bundle(out)


def test_two_at_once_do_not_meet(kit: Path, tmp_path: Path) -> None:
    def second(stage: str, done: float | None) -> None:
        if "build denoiser" in stage:
            finalize(kit, tmp_path / "out.dxb")

    with pytest.raises(UserError, match="expected a folder of our own, got another finalize at work in it"):
        finalize(kit, tmp_path / "out.dxb", report=second)


def test_another_result_than_the_golden_one_writes_nothing(tmp_path: Path) -> None:
    kit = small_kit(tmp_path / "kit.dxb", golden_offset=100.0)
    with pytest.raises(Failure, match=r"golden test: expected outputs as they were computed in PyTorch, got relative errors: decoder 0\.9"):
        finalize(kit, tmp_path / "out.dxb")
    assert not (tmp_path / "out.dxb").exists()
    untested = finalize(without_golden(kit, tmp_path / "bare"), tmp_path / "out.dxb")  # the same models, so the engines are there
    assert len(untested.kept) == 2 and untested.warnings == ("the kit has no golden inputs and outputs: the result is not tested",)


def _refused(kind: type[DexportError], *arguments: Any, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        finalize(*arguments, **options)
    return str(caught.value)


def test_what_is_no_kit_is_refused(kit: Path, finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "out.dxb"
    assert "finalize: expected a build kit, got a finished bundle; use it as it is" in _refused(UserError, finished.path, out)
    assert "expected another name than the kit's, got the same" in _refused(UserError, kit, kit)
    assert "expected a bundle, got nothing there" in _refused(UserError, tmp_path / "none.dxb", out)


def test_what_may_not_be_replaced_is_found_before_anything_is_built(kit: Path, tmp_path: Path) -> None:
    (tmp_path / "out.dxb").write_text("mine")
    assert "expected nothing there, or a bundle to replace" in _refused(UserError, kit, tmp_path / "out.dxb", report=_stop_at(""))


def test_a_kit_for_another_device_is_refused_in_one_line(tmp_path: Path) -> None:
    kit = small_kit(tmp_path / "kit.dxb", "jetson-orin-nano-8gb@jetpack-6.2")
    message = _refused(UserError, kit, tmp_path / "out.dxb", device=Device("x86_64"))
    wanted = "a Jetson Orin Nano 8GB with aarch64, Jetson Linux 36 (JetPack 6.2), SM 8.7, TensorRT 10.3"
    assert f"this device: expected {wanted}, got x86_64, Jetson Linux none, no GPU, TensorRT none; finalize it on that device" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kit.dxb"]


@pytest.mark.parametrize(
    ("device", "version", "message"),
    [
        (ORIN, "101303", "expected a Jetson Orin Nano 8GB with TensorRT 10.3, got TensorRT 10.13.3"),
        (Device("aarch64", jetson_linux="36.4.3", sm=110), "100300", "with SM 8.7, got SM 11.0"),
        (Device("aarch64", jetson_linux="39.2.0", sm=87), "100300", "with Jetson Linux 36 (JetPack 6.2), got Jetson Linux 39.2.0"),
    ],
)
@pytest.mark.usefixtures("trtexec")
def test_each_difference_of_a_jetson_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Device, version: str, message: str
) -> None:
    monkeypatch.setenv("VERSION", version)
    kit = small_kit(tmp_path / "kit.dxb", "jetson-orin-nano-8gb@jetpack-6.2")
    assert message in _refused(UserError, kit, tmp_path / "out.dxb", device=device, test=False)


def _finalize_on_orin(tmp_path: Path, out: str = "out.dxb") -> Finished:
    kit = tmp_path / "kit.dxb"
    if not kit.exists():
        small_kit(kit, "jetson-orin-nano-8gb@jetpack-6.2")
    return finalize(kit, tmp_path / out, device=ORIN, test=False)


def test_the_commands_for_trtexec(tmp_path: Path, trtexec: Callable[[], list[str]]) -> None:
    finished = _finalize_on_orin(tmp_path)
    work, inputs = f"{tmp_path}/out.dxb.finalize", f"{tmp_path}/out.dxb.finalize/inputs/graphs"
    cache = f"{tmp_path}/cache/timing/NVIDIA-Jetson-Orin-Nano-sm87-MAXN-SUPER-tensorrt-10.3.0.timing"
    flags = "--stronglyTyped --skipInference --profilingVerbosity=detailed --memPoolSize=workspace:1433M"
    shapes = f"--profile=0 --minShapes=x:1x{WIDTH} --optShapes=x:2x{WIDTH} --maxShapes=x:4x{WIDTH}"
    assert PROFILE == {"x": ((1, WIDTH), (2, WIDTH), (4, WIDTH))}
    assert trtexec() == [
        f"--onnx={inputs}/{name}.onnx --saveEngine={work}/{name}.partial/{name}.engine"
        f" --exportLayerInfo={work}/{name}.partial/{name}.layers.json --timingCacheFile={cache} {flags} {shapes}"
        for name in ("denoiser-64x64", "decoder")
    ]
    assert Path(cache).read_text() == "cache\n"
    manifest = open_bundle(finished.path).manifest
    variant = manifest.components["decoder"].variants[0]
    assert manifest.backend == variant.format == "tensorrt" and variant.native and variant.files == ("engines/decoder.engine",)
    assert variant.profiles == {"ranges": [{"x": [[1, WIDTH], [2, WIDTH], [4, WIDTH]]}]}
    assert variant.kernels == {
        "layers": {"fp16": 1},
        "products": {"fp16": 1},
        "fallbacks": [{"node": "quantized_product", "asked": "int8", "got": "fp16"}],
        "not_named": 0,
        "accelerators": ["sm87"],
    }
    assert "asked for int8 but computed in fp16" in finished.warnings[0]
    record = json.loads(open_bundle(finished.path).read_bytes("report/finalize.json"))
    assert record["device"]["power_mode"] == "MAXN_SUPER" and record["device"]["clocks"] == ["GPU MaxFreq=1020000000"]


@pytest.mark.usefixtures("trtexec")
def test_engines_that_were_built_here_are_trusted(tmp_path: Path) -> None:
    finished = _finalize_on_orin(tmp_path)
    bundle = open_bundle(finished.path)
    assert bundle.read_bytes("engines/decoder.engine") == b"plan of decoder.engine"
    assert {bundle.manifest.files[file].sha256 for file in bundle.manifest.native_files()} == trusted_hashes(default_trust_file())


def test_a_failed_engine_keeps_the_others(tmp_path: Path, trtexec: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "decoder")
    with pytest.raises(Failure, match=r"decoder: expected an engine, got exit status 1 after 0 s: Error: out of memory; read .*build.log"):
        _finalize_on_orin(tmp_path)
    monkeypatch.delenv("FAIL")
    again = _finalize_on_orin(tmp_path)
    assert again.built == ("decoder",) and len(trtexec()) == 3


def test_a_damaged_engine_is_built_again(tmp_path: Path, trtexec: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "decoder")
    with pytest.raises(Failure):
        _finalize_on_orin(tmp_path)
    monkeypatch.delenv("FAIL")
    (tmp_path / "out.dxb.finalize/denoiser-64x64/denoiser-64x64.engine").write_bytes(b"plan of denoiser-64x64.engin!")
    assert _finalize_on_orin(tmp_path).built == ("denoiser-64x64", "decoder") and len(trtexec()) == 4


def _finalize_interrupted(tmp_path: Path, **options: Any) -> None:
    """Up to the moment at which all engines lie in out.dxb.finalize."""
    kit = tmp_path / "kit.dxb"
    if not kit.exists():
        small_kit(kit, "jetson-orin-nano-8gb@jetpack-6.2")
    with pytest.raises(KeyboardInterrupt):
        finalize(kit, tmp_path / "out.dxb", device=ORIN, report=_stop_at("write the bundle"), test=False, **options)


def _assert_only_our_own_code(finished: Finished) -> None:
    bundle = open_bundle(finished.path)
    assert {bundle.read_bytes(file) for file in bundle.manifest.native_files()} == {
        b"plan of denoiser-64x64.engine",
        b"plan of decoder.engine",
    }
    assert trusted_hashes(default_trust_file()) == {bundle.manifest.files[file].sha256 for file in bundle.manifest.native_files()}


@pytest.mark.usefixtures("trtexec")
def test_engines_from_elsewhere_are_not_kept_by_a_run_that_builds(tmp_path: Path) -> None:
    small_kit(tmp_path / "kit.dxb", "jetson-orin-nano-8gb@jetpack-6.2")
    _finalize_interrupted(tmp_path, engines=_built_by_the_kit(tmp_path))
    finished = _finalize_on_orin(tmp_path)
    assert not finished.kept
    _assert_only_our_own_code(finished)


@pytest.mark.usefixtures("trtexec")
def test_an_engine_that_somebody_put_there_is_not_kept(tmp_path: Path) -> None:
    _finalize_interrupted(tmp_path)
    folder = tmp_path / "out.dxb.finalize/decoder"
    (folder / "decoder.engine").write_bytes(b"evil")
    record = json.loads((folder / RECORD).read_text())
    record["hashes"]["decoder.engine"] = hashlib.sha256(b"evil").hexdigest()
    (folder / RECORD).write_text(json.dumps(record))
    finished = _finalize_on_orin(tmp_path)
    assert finished.kept == ("denoiser-64x64",)
    _assert_only_our_own_code(finished)


def test_layers_that_changed_build_the_engine_again(tmp_path: Path, trtexec: Callable[[], list[str]]) -> None:
    _finalize_interrupted(tmp_path)
    (tmp_path / "out.dxb.finalize/decoder/decoder.layers.json").write_text('{"Layers": []}')
    assert _finalize_on_orin(tmp_path).built == ("decoder",) and len(trtexec()) == 3


def test_another_tensorrt_builds_every_engine_again(
    tmp_path: Path, trtexec: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "decoder")
    with pytest.raises(Failure):
        _finalize_on_orin(tmp_path)
    monkeypatch.delenv("FAIL")
    monkeypatch.setenv("VERSION", "100301")
    assert not _finalize_on_orin(tmp_path).kept and len(trtexec()) == 4


@pytest.mark.usefixtures("trtexec")
def test_the_golden_test_of_tensorrt_needs_its_package(tmp_path: Path) -> None:
    kit = small_kit(tmp_path / "kit.dxb", "jetson-orin-nano-8gb@jetpack-6.2")
    message = _refused(UserError, kit, tmp_path / "out.dxb", device=ORIN)
    assert "golden test: expected the Python package tensorrt, got it is not installed; run: sudo apt-get install" in message


def _built_by_the_kit(tmp_path: Path, **stamp: str) -> Path:
    """The folder that kit/build.sh leaves."""
    manifest = open_bundle(tmp_path / "kit.dxb").manifest
    engines = tmp_path / "engines"
    engines.mkdir()
    flags = "--stronglyTyped --skipInference --profilingVerbosity=detailed --memPoolSize=workspace:1433M"
    shapes = f"--profile=0 --minShapes=x:1x{WIDTH} --optShapes=x:2x{WIDTH} --maxShapes=x:4x{WIDTH}"
    sources = [file for plugin in manifest.plugins for file in plugin.files]
    for name in ("denoiser-64x64", "decoder"):
        files = (f"graphs/{name}.onnx", f"graphs/{name.split('-')[0]}.data", *sources)
        hashes = ",".join(sorted(manifest.files[file].sha256 for file in files))
        (engines / f"{name}.engine").write_text(f"plan of {name}")
        (engines / f"{name}.layers.json").write_text('{"Layers": []}')
        (engines / f"{name}.made-by").write_text(stamp.get(name, f"TensorRT 100300 {hashes} {flags} {shapes}") + "\n")
    return engines


def test_engines_of_a_device_without_dexport(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    kit = small_kit(tmp_path / "kit.dxb", "jetson-orin-nano-8gb@jetpack-6.2")
    finished = finalize(kit, tmp_path / "out", engines=_built_by_the_kit(tmp_path), device=Device("x86_64"))
    assert (finished.path / "engines/decoder.engine").read_text() == "plan of decoder"
    record = json.loads((finished.path / "report/finalize.json").read_text())
    assert "device" not in record and "tools" not in record, "this machine did not build them"
    with pytest.raises(UserError, match="expected machine code that was built on this machine or that you trust"):
        open_bundle(finished.path).read_bytes("engines/decoder.engine")


@pytest.mark.parametrize(
    ("stamp", "message"),
    [
        ("TensorRT 101303 --stronglyTyped", "decoder.made-by: expected TensorRT 10.3, got 10.13; run `bash kit/build.sh`"),
        ("TensorRT 100300 --stronglyTyped", "decoder.made-by: expected the flags of this kit, got --stronglyTyped; run"),
        ("nonsense", "decoder.made-by: expected TensorRT 10.3, got 0.0; run"),
    ],
)
def test_engines_of_another_kit_are_refused(tmp_path: Path, stamp: str, message: str) -> None:
    kit = small_kit(tmp_path / "kit.dxb", "jetson-orin-nano-8gb@jetpack-6.2")
    engines = _built_by_the_kit(tmp_path, decoder=stamp)
    assert message in _refused(UserError, kit, tmp_path / "out", engines=engines, device=Device("x86_64"))
    assert "expected what kit/build.sh writes, got No such file" in _refused(
        UserError, kit, tmp_path / "out", engines=tmp_path, device=Device("x86_64")
    )


def test_engines_of_another_kit_with_the_same_shapes_are_refused(tmp_path: Path) -> None:
    kit = small_kit(tmp_path / "kit.dxb", "jetson-orin-nano-8gb@jetpack-6.2")
    engines = _built_by_the_kit(tmp_path)
    stamp = engines / "decoder.made-by"
    stamp.write_text((engines / "denoiser-64x64.made-by").read_text())
    message = _refused(UserError, kit, tmp_path / "out", engines=engines, device=Device("x86_64"))
    assert "decoder.made-by: expected the sha256 of this kit's model, got " in message
    stamp.write_text(re.sub("[0-9a-f,]{64,} ", "", stamp.read_text()))
    assert "sha256 of this kit's model, got none" in _refused(UserError, kit, tmp_path / "out", engines=engines, device=Device("x86_64"))


def test_a_full_disk(kit: Path, tmp_path: Path) -> None:
    """Filled while it builds; with room again, the rest is built."""
    code = """
import os, sys
from pathlib import Path
from dexport.errors import Failure
from dexport.runtime.finalize.finalize import finalize

def fill(stage, done):
    if "build decoder" in stage:
        with open("filler", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

try:
    finalize(Path(sys.argv[1]), Path("out.dxb"), report=fill, test=False)
except Failure as error:
    print(error)
print(sorted(os.listdir()))
os.unlink("filler")
finished = finalize(Path(sys.argv[1]), Path("out.dxb"), test=False)
print(finished.built, finished.kept, sorted(os.listdir()))
"""
    (tmp_path / "disk").mkdir()
    first, listed, second = run_on_small_disk(tmp_path / "disk", code, str(kit)).splitlines()
    assert "out.dxb.finalize: expected room for the engine decoder, got " in first and "finished engines are kept" in first
    assert listed == "['filler', 'out.dxb.finalize']"
    assert second == "('decoder',) ('denoiser-64x64',) ['out.dxb']"


def test_a_disk_that_is_too_small_from_the_start(tmp_path: Path) -> None:
    kit = small_kit(tmp_path / "kit.dxb")
    code = """
import os, sys
from pathlib import Path
from dexport.errors import Failure
from dexport.runtime.finalize.finalize import finalize
Path("filler").write_bytes(bytes(1000 << 10))
try:
    finalize(Path(sys.argv[1]), Path("out.dxb"))
except Failure as error:
    print(error)
"""
    (tmp_path / "disk").mkdir()
    message = run_on_small_disk(tmp_path / "disk", code, str(kit))
    assert "bytes free to build 2 engines, got " in message and "free some space and run it again" in message
