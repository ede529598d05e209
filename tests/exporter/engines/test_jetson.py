"""The build kit: exact flags, refusals before anything is written, and scripts that run, resume and leave no half engine.

There is no trtexec here: a stand-in program accepts exactly the flags that trtexec of TensorRT 10.3 has (read in its
sampleOptions.cpp), writes the files it is told to write, and can be made to fail half-way.
"""

import hashlib
import os
import subprocess
from pathlib import Path

import onnx
import onnx.parser
import pytest

from dexport.errors import DexportError, Failure, UserError
from dexport.exporter.engines.jetson import KitComponent, write_kit, write_plugins
from dexport.targets.catalogue import find

ORIN = find("jetson-orin-nano-8gb@jetpack-6.2")
DYNAMIC = "g (float[B,4] latent, float[1,4] row) => (float[B,4] y) { y = Add(latent, row) }"
STATIC = "g (float[2,4] x) => (float[2,4] y) { y = Relu(x) }"
PROFILES = ({"latent": ((1, 4), (1, 4), (1, 4))}, {"latent": ((2, 4), (2, 4), (8, 4))})

STAND_IN = """#!/usr/bin/env bash
set -eu
banner='&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec'
if [[ "$1" == --help ]]; then echo "$banner"; exit 0; fi
echo "$*" >>"$CALLS"
for flag in "$@"; do
  case "$flag" in
    --onnx=*) [[ -s "${flag#*=}" ]] || exit 3 ;;
    --saveEngine=*) engine="${flag#*=}" ;;
    --exportLayerInfo=*) layers="${flag#*=}" ;;
    --stronglyTyped | --skipInference | --profilingVerbosity=detailed | --memPoolSize=workspace:*M | --timingCacheFile=*) ;;
    --profile=* | --minShapes=* | --optShapes=* | --maxShapes=*) ;;
    --dynamicPlugins=*) [[ -s "${flag#*=}" ]] || { echo "no library ${flag#*=}"; exit 4; } ;;
    *) echo "unknown option $flag"; exit 2 ;;
  esac
done
printf half >"$engine"
[[ -z "${FAIL:-}" ]] || { echo "out of memory"; exit 1; }
[[ -n "${EMPTY:-}" ]] && : >"$engine" && exit 0
printf engine >"$engine"
echo '{}' >"$layers"
"""


def _model(bundle: Path, name: str, graph: str, opset: int = 20) -> str:
    path = bundle / "graphs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}, "my" : 1, "dexport" : 1]> {graph}'), str(path))
    return f"graphs/{name}"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "a bundle"
    _model(folder, "denoiser.onnx", DYNAMIC)
    _model(folder, "decoder.onnx", STATIC)
    return folder


@pytest.fixture
def components() -> list[KitComponent]:
    return [
        KitComponent("denoiser", "graphs/denoiser.onnx", PROFILES, weight_bytes=1000),
        KitComponent("decoder", "graphs/decoder.onnx", (), weight_bytes=1000),
    ]


def _build(bundle: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    stand_in = bundle.parent / "trtexec"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    environment = {"TRTEXEC": str(stand_in), "CALLS": str(bundle.parent / "calls"), "DEXPORT_SKIP_CHECKS": "1", **environment}
    return subprocess.run(["bash", str(bundle / "kit/build.sh")], env={**os.environ, **environment}, capture_output=True, text=True)


def _calls(bundle: Path) -> list[str]:
    path = bundle.parent / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_files_of_a_kit(bundle: Path, components: list[KitComponent]) -> None:
    written = write_kit(bundle, components, ORIN)
    assert written == ("kit/README.md", "kit/build.sh", "kit/check.sh")
    for name in written:
        assert os.access(bundle / name, os.X_OK) == name.endswith(".sh")
    for script in ("build.sh", "check.sh"):
        subprocess.run(["bash", "-n", str(bundle / "kit" / script)], check=True)
        assert "set -euo pipefail" in (bundle / "kit" / script).read_text()
    readme = (bundle / "kit/README.md").read_text()
    assert "Jetson Orin Nano 8GB (SM 8.7)" in readme
    assert "| `engines/denoiser.engine` | `graphs/denoiser.onnx` | `latent:1x4`; `latent:2x4` |" in readme
    assert "| `engines/decoder.engine` | `graphs/decoder.onnx` | fixed sizes |" in readme
    assert "sudo nvpmodel -m 2" in readme
    assert write_kit(bundle, components, ORIN) == written


def test_build_makes_every_engine_and_resumes(bundle: Path, components: list[KitComponent]) -> None:
    write_kit(bundle, components, ORIN)
    first = _build(bundle)
    assert first.returncode == 0, first.stderr
    assert (bundle / "engines/denoiser.engine").read_text() == "engine"
    made = {path.name for path in (bundle / "engines").iterdir()}
    assert made == {f"{name}.{suffix}" for name in ("denoiser", "decoder") for suffix in ("engine", "layers.json", "log", "made-by")}
    assert len(_calls(bundle)) == 2

    again = _build(bundle)
    assert again.returncode == 0
    assert "denoiser: engines/denoiser.engine is up to date" in again.stdout
    assert len(_calls(bundle)) == 2

    os.utime(bundle / "graphs/decoder.onnx", (2**32 - 1, 2**32 - 1))
    assert _build(bundle).returncode == 0
    assert len(_calls(bundle)) == 3
    assert "--onnx=graphs/decoder.onnx" in _calls(bundle)[-1]


def test_other_flags_rebuild_the_engine(bundle: Path, components: list[KitComponent]) -> None:
    write_kit(bundle, components, ORIN)
    _build(bundle)
    write_kit(bundle, components, find("jetson-orin@jetpack-6.2"))
    assert _build(bundle).returncode == 0
    assert len(_calls(bundle)) == 4


def test_an_engine_is_stamped_with_the_files_of_its_model(bundle: Path) -> None:
    """finalize --engines compares them with the kit; a file of the same age but of another content builds the engine again."""
    data, model = bundle / "graphs/decoder.data", bundle / "graphs/decoder.onnx"
    data.write_bytes(b"weights")
    component = KitComponent("decoder", "graphs/decoder.onnx", (), weight_bytes=7, data=("graphs/decoder.data",))
    write_kit(bundle, [component], ORIN)
    for content in (b"weights", b"weight2"):
        data.write_bytes(content)
        os.utime(data, (0, 0))
        assert _build(bundle).returncode == 0
        hashes = ",".join(sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in (model, data)))
        assert (bundle / "engines/decoder.made-by").read_text().startswith(f"TensorRT 100300 {hashes} --stronglyTyped ")
    assert len(_calls(bundle)) == 2
    data.unlink()
    assert _build(bundle).returncode != 0


def test_a_failed_build_leaves_no_engine_and_can_be_repeated(bundle: Path, components: list[KitComponent]) -> None:
    write_kit(bundle, components, ORIN)
    failed = _build(bundle, FAIL="1")
    assert failed.returncode == 1
    assert "out of memory" in failed.stderr
    assert "denoiser: expected trtexec to build graphs/denoiser.onnx, got a failure; read engines/denoiser.log" in failed.stderr
    assert {path.name for path in (bundle / "engines").iterdir()} == {"denoiser.log"}
    assert _build(bundle).returncode == 0


def test_an_empty_engine_is_a_failure(bundle: Path, components: list[KitComponent]) -> None:
    write_kit(bundle, components, ORIN)
    failed = _build(bundle, EMPTY="1")
    assert failed.returncode == 1
    assert "expected an engine from trtexec, got none" in failed.stderr
    assert not list((bundle / "engines").glob("*.engine*"))


def test_a_failed_rebuild_keeps_the_old_engine_but_not_as_up_to_date(bundle: Path, components: list[KitComponent]) -> None:
    write_kit(bundle, components, ORIN)
    _build(bundle)
    os.utime(bundle / "graphs/denoiser.onnx", (2**32 - 1, 2**32 - 1))
    assert _build(bundle, FAIL="1").returncode == 1
    assert (bundle / "engines/denoiser.engine").read_text() == "engine"
    assert not (bundle / "engines/denoiser.made-by").exists()


def test_build_without_trtexec(bundle: Path, components: list[KitComponent]) -> None:
    write_kit(bundle, components, ORIN)
    result = _build(bundle, TRTEXEC="/nowhere/trtexec")
    assert result.returncode == 1
    assert "trtexec: expected an executable file, got /nowhere/trtexec; install TensorRT or set TRTEXEC" in result.stderr


def test_checks_name_every_fault_and_stop_the_build(bundle: Path, components: list[KitComponent]) -> None:
    huge = [KitComponent("denoiser", "graphs/denoiser.onnx", PROFILES, weight_bytes=10**15)]
    write_kit(bundle, huge, find("jetson-orin@jetpack-7.2"))
    result = _build(bundle, DEXPORT_SKIP_CHECKS="0")
    assert result.returncode == 1
    assert "FAULT Jetson Linux: expected 39.2.0 (JetPack 7.2), got" in result.stderr
    assert "FAULT TensorRT: expected 10.16, got 100300; build a bundle for the JetPack of this device" in result.stderr
    assert "FAULT free memory: expected 238" in result.stderr
    assert "FAULT free disk: expected 1144" in result.stderr
    assert "ADVICE power mode: expected MAXN" in result.stdout
    assert "faults; nothing was changed" in result.stderr
    assert _calls(bundle) == []


def test_the_right_tensorrt_is_no_fault(bundle: Path, components: list[KitComponent]) -> None:
    write_kit(bundle, components, ORIN)
    result = _build(bundle, DEXPORT_SKIP_CHECKS="0")
    assert "FAULT TensorRT" not in result.stderr


NVCC = """#!/usr/bin/env bash
set -eu
echo "$*" >>"$CALLS"
while [[ "$1" != -o ]]; do case "$1" in *.cu | *.cpp) [[ -s "$1" ]] ;; esac; shift; done
[[ -z "${FAIL_NVCC:-}" ]] || { echo "error: no such file"; exit 1; }
printf library >"$2"
"""


def test_plugins_are_compiled_and_loaded(bundle: Path) -> None:
    node = 'plugin_version = "1", plugin_namespace = "dexport", activation_bits = 4, activation_block = 64, gelu = 0'
    node += ", branch = 0, bias = 0, gate = 0, scale = 0"
    model = f"""g (float16[2,64] x) => (float16[2,8] y) <int32[8,8] w, float16[1,8] s> {{
        y = dexport.LowrankLinear <{node}> (x, w, s) }}"""
    component = KitComponent("linear", _model(bundle, "linear.onnx", model), (), weight_bytes=0)
    plugins = write_plugins(bundle, [component], ORIN)
    assert [plugin.name for plugin in plugins] == ["lowrank_linear"] and not write_plugins(bundle, [], ORIN)
    write_kit(bundle, [component], ORIN, plugins)
    assert "libdexport_*.so" in (bundle / "kit/README.md").read_text()

    nvcc, headers = bundle.parent / "nvcc", bundle.parent / "headers"
    nvcc.write_text(NVCC)
    nvcc.chmod(0o755)
    assert "expected NvInferRuntime.h in" in _build(bundle, NVCC=str(nvcc), TENSORRT_INCLUDE_DIR=str(headers)).stderr
    headers.mkdir()
    (headers / "NvInferRuntime.h").touch()
    place = {"NVCC": str(nvcc), "TENSORRT_INCLUDE_DIR": str(headers)}
    assert "expected an executable file" in _build(bundle, **{**place, "NVCC": "/nothing"}).stderr
    failed = _build(bundle, **place, FAIL_NVCC="1")
    assert failed.returncode == 1 and "libdexport_lowrank_linear: expected nvcc to compile it, got a failure" in failed.stderr
    (bundle.parent / "calls").unlink()
    result = _build(bundle, **place)
    assert result.returncode == 0, result.stderr
    compiled, built = _calls(bundle)
    assert "-gencode arch=compute_87,code=sm_87 -I plugins/cuda -I plugins/lowrank_linear plugins/lowrank_linear/kernel.cu" in compiled
    assert f"-isystem {headers}" in compiled
    assert "--dynamicPlugins=engines/libdexport_lowrank_linear.so" in built
    assert (bundle / "engines/libdexport_lowrank_linear.so").read_text() == "library"
    assert _build(bundle, **place).returncode == 0 and len(_calls(bundle)) == 2

    kernel = bundle / "plugins/lowrank_linear/kernel.cu"
    kernel.write_text(kernel.read_text() + "// changed")
    assert _build(bundle, **place).returncode == 0 and len(_calls(bundle)) == 4  # the library, and the engine that was timed with it


def _refused(bundle: Path, component: KitComponent, **options: object) -> DexportError:
    target = options.pop("target", ORIN)
    with pytest.raises(DexportError) as caught:
        write_kit(bundle, [component], target, **options)  # type: ignore[arg-type]
    assert not (bundle / "kit").exists()
    return caught.value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../x"}, "component '../x': expected letters, digits, _ . -, got ../x; rename it"),
        ({"onnx": "../denoiser.onnx"}, "expected a plain path inside the bundle, got ../denoiser.onnx"),
        ({"onnx": "/denoiser.onnx"}, "expected a plain path inside the bundle"),
        ({"profiles": ()}, "component denoiser: expected profiles for latent, got 0 profiles"),
        ({"profiles": ({},)}, "profile 0: expected a range for each input with an unknown size (latent), got none"),
        ({"profiles": ({"row": ((1, 4), (1, 4), (1, 4))},)}, "(latent), got row; list these inputs"),
        ({"profiles": ({"latent": ((1,), (1,), (1,))},)}, "profile 0, input latent: expected 2 dimensions"),
        (
            {"profiles": ({"latent": ((2, 4), (1, 4), (2, 4))},)},
            "expected 1 <= smallest <= usual <= largest on axis 0, got 2, 1, 2; correct the profile",
        ),
        ({"profiles": ({"latent": ((0, 4), (1, 4), (2, 4))},)}, "on axis 0, got 0, 1, 2"),
        ({"profiles": ({"latent": ((1, 4), (1, 5), (1, 5))},)}, "expected 4 on axis 1, which the model fixes, got 4, 5, 5"),
    ],
)
def test_faulty_components_are_refused_before_anything_is_written(bundle: Path, changes: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"name": "denoiser", "onnx": "graphs/denoiser.onnx", "profiles": PROFILES, "weight_bytes": 0, **changes}
    assert message in str(_refused(bundle, KitComponent(**values)))  # type: ignore[arg-type]


def test_models_the_parser_cannot_take_are_refused(bundle: Path) -> None:
    model = _model(bundle, "new.onnx", STATIC, opset=23)
    error = _refused(bundle, KitComponent("new", model, (), 0))
    assert isinstance(error, Failure)
    assert "graphs/new.onnx, new.onnx: expected opset 9 to 20, got opset 23" in str(error)
    model = _model(bundle, "odd.onnx", "g (float[2,4] x) => (float[2,4] y) { a = my.a(x) y = my.b(a) }")
    assert "got my::a (and 1 more problems)" in str(_refused(bundle, KitComponent("odd", model, (), 0)))


def test_shapes_for_a_model_without_free_sizes_are_refused(bundle: Path) -> None:
    component = KitComponent("decoder", "graphs/decoder.onnx", ({"x": ((2, 4), (2, 4), (2, 4))},), 0)
    assert "expected no profiles, for all sizes are fixed, got 1 profiles" in str(_refused(bundle, component))


def test_input_names_that_trtexec_cannot_read_are_refused(bundle: Path) -> None:
    path = bundle / "graphs/denoiser.onnx"
    model = onnx.load(str(path))
    model.graph.input[0].name = model.graph.node[0].input[0] = "a,b"
    onnx.save(model, str(path))
    component = KitComponent("denoiser", "graphs/denoiser.onnx", ({"a,b": ((1, 4), (1, 4), (1, 4))},), 0)
    assert "which trtexec can read, got a,b; rename the input" in str(_refused(bundle, component))


def test_targets_without_kits_are_refused(bundle: Path, components: list[KitComponent]) -> None:
    assert isinstance(_refused(bundle, components[1], target=find("jetson-xavier")), UserError)
    assert "target rtx-4090: expected a Jetson, got tensorrt-rtx" in str(_refused(bundle, components[1], target=find("rtx-4090")))
