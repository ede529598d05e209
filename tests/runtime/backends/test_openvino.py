"""OpenVINO runs IR at the precision of the bundle, at any shape, and hands its results over."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from dexport.errors import Failure, UserError
from dexport.runtime.backends.openvino import OpenVinoEngine
from dexport.runtime.builders.openvino import ir_from_onnx

_MODEL = """<ir_version: 10, opset_import: ["" : 20]> g (float[batch, 3] x, float[batch, 3] z) => (float[batch, 3] y, float[batch, 3] twice)
<float[3] w = {1, 2, 3}> {
  y = Mul (x, w)
  twice = Add (x, z)
}"""


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, np.ndarray]:
    folder = tmp_path_factory.mktemp("ir")
    onnx.save(onnx.parser.parse_model(_MODEL), folder / "m.onnx")
    files = ir_from_onnx(folder / "m.onnx", folder / "m.xml")
    assert (files.xml, files.bin) == (folder / "m.xml", folder / "m.bin")
    return files.xml.read_bytes(), np.fromfile(files.bin, np.uint8)


def test_any_batch_runs_and_results_belong_to_the_caller(ir: tuple[bytes, np.ndarray]) -> None:
    engine = OpenVinoEngine(*ir, "fp32", None, "model")
    wanted = {}
    for batch in (1, 3, 1):
        x = np.arange(batch * 3, dtype=np.float32).reshape(batch, 3) + batch
        strided = np.asfortranarray(x)
        given = engine({"x": strided, "z": x})
        wanted[batch] = (given, x * np.array([1, 2, 3], np.float32), 2 * x)
    for given, y, twice in wanted.values():
        np.testing.assert_array_equal(given["y"], y)
        np.testing.assert_array_equal(given["twice"], twice)
    engine.close()


@pytest.mark.parametrize(("precision", "hint"), [("fp32", "'float32'"), ("fp16", "'float32'"), ("bf16", "bfloat16")])
def test_the_precision_is_never_left_to_the_plugin(ir: tuple[bytes, np.ndarray], precision: str, hint: str, tmp_path: Path) -> None:
    engine = OpenVinoEngine(*ir, precision, tmp_path, "model")
    x = np.ones((2, 3), np.float32)
    engine({"x": x, "z": x})
    compiled = engine._request({"x": x, "z": x}).get_compiled_model()
    used = str(compiled.get_property("INFERENCE_PRECISION_HINT"))
    assert hint in used or (precision == "bf16" and "float32" in used)  # a processor without bf16 computes in fp32


def test_shapes_that_do_not_fit_are_a_failure(ir: tuple[bytes, np.ndarray]) -> None:
    engine = OpenVinoEngine(*ir, "fp32", None, "bundle: model")
    with pytest.raises(Failure, match=r"bundle: model: expected OpenVINO to compile x \[2, 4\], z \[2, 3\], got .*; rebuild the bundle"):
        engine({"x": np.ones((2, 4), np.float32), "z": np.ones((2, 3), np.float32)})


def test_what_is_no_model_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"bundle: model: expected an OpenVINO model, got .*; rebuild the bundle"):
        OpenVinoEngine(b"<nonsense/>", np.zeros(4, np.uint8), "fp32", None, "bundle: model")
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    with pytest.raises(Failure, match=r"m.onnx: expected a model that OpenVINO can convert, got .*; report this with the output"):
        ir_from_onnx(tmp_path / "m.onnx", tmp_path / "m.xml")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    message = r"expected the openvino package, got it is not installed; pip install 'dexport\[openvino\]'"
    with pytest.raises(UserError, match=f"backend openvino: {message}"):
        OpenVinoEngine(b"", np.zeros(4, np.uint8), "fp32", None, "model")
    with pytest.raises(UserError, match=f"target cpu: {message}"):
        ir_from_onnx(tmp_path / "m.onnx", tmp_path / "m.xml")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_of_a_mapped_file_are_given_back_when_the_weights_are_packed(tmp_path: Path) -> None:
    width = 512
    weight = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", width])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", width])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    files = ir_from_onnx(tmp_path / "m.onnx", tmp_path / "m.xml")
    with files.bin.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    weights = np.frombuffer(mapped, np.uint8)
    assert weights.sum() > 0
    assert _resident(files.bin) == weights.nbytes
    engine = OpenVinoEngine(files.xml.read_bytes(), weights, "fp32", None, "model")
    for batch in (2, 3, 2):  # the second shape reads the pages again
        x = np.eye(batch, width, dtype=np.float32)
        np.testing.assert_allclose(engine({"x": x})["y"], weight[:batch], rtol=1e-5)
        assert _resident(files.bin) < weights.nbytes / 4


def _resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    mappings = Path("/proc/self/smaps").read_text().split("VmFlags:")
    sizes = [int(line.split()[1]) for entry in mappings if str(path) in entry for line in entry.splitlines() if line.startswith("Rss:")]
    return sum(sizes) << 10
