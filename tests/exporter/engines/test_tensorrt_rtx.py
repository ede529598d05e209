import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest

from dexport.errors import Failure, UserError

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx (pip install 'dexport[rtx]')")

from dexport.exporter.engines.tensorrt_rtx import Profile, build_engine
from tests.exporter.engines.rtx_models import TOKENS, WIDTH, block, write


def shape(batch: int) -> tuple[int, ...]:
    return batch, TOKENS, WIDTH


@pytest.mark.parametrize("sm", [86, 89, 120])
def test_block_in_fp16(tmp_path: Path, sm: int) -> None:
    report = build_engine(block(tmp_path / "b.onnx"), tmp_path / "b.plan", sm=(sm,))
    (program,) = report.kernels.programs
    # q, k and v share their input and become one GEMM: six linears, four GEMMs.
    assert (program.gemms, program.attentions, program.unfused_attention) == ({"fp16": 4}, {"fp16": 1}, ())
    assert report.kernels.accelerators == (f"sm{sm}",)
    assert report.bytes == (tmp_path / "b.plan").stat().st_size
    assert report.sm == (sm,) and report.tensorrt_version.startswith("1.")
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["b.onnx", "b.plan"]


def test_block_in_int8_for_three_generations(tmp_path: Path) -> None:
    report = build_engine(block(tmp_path / "b.onnx", quantized="constant"), tmp_path / "b.plan", sm=(86, 89, 120))
    (program,) = report.kernels.programs
    assert (program.gemms, program.attentions) == ({"int8": 4}, {"fp16": 1})
    assert report.kernels.accelerators == ("sm86", "sm89", "sm120")


def test_a_scale_that_is_an_input_loses_int8(tmp_path: Path) -> None:
    report = build_engine(block(tmp_path / "b.onnx", quantized="input"), tmp_path / "b.plan", sm=(89,))
    (program,) = report.kernels.programs
    assert set(program.gemms) == {"int8-weights"}  # weights stay int8, but are widened: the arithmetic is that of 16 bits


def test_each_profile_gets_its_program_and_weights_are_shared(tmp_path: Path) -> None:
    model = block(tmp_path / "b.onnx", batch="n")
    profiles: list[Profile] = [{"x": (shape(1), shape(1), shape(1))}, {"x": (shape(2), shape(2), shape(2))}]
    report = build_engine(model, tmp_path / "b.plan", sm=(86,), profiles=profiles)
    assert [(p.gemms, p.attentions) for p in report.kernels.programs] == [({"fp16": 4}, {"fp16": 1})] * 2
    weight = onnx.load(model).graph.initializer[-1].raw_data
    assert (tmp_path / "b.plan").read_bytes().count(weight) == 1


def test_weights_beside_the_graph(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    model = block(tmp_path / "b.onnx")
    onnx.save(onnx.load(model), tmp_path / "in" / "b.onnx", save_as_external_data=True, location="b.bin", size_threshold=0)
    report = build_engine(tmp_path / "in" / "b.onnx", tmp_path / "b.plan", sm=(86,))
    assert report.kernels.programs[0].gemms == {"fp16": 4}
    (tmp_path / "in" / "b.bin").unlink()
    with pytest.raises(
        Failure, match=r"^b.onnx: expected a model .*Failed to import initializer.*; check the file and the weights beside it$"
    ):
        build_engine(tmp_path / "in" / "b.onnx", tmp_path / "b2.plan", sm=(86,))


UNKNOWN = "g (float16[2,3] x) => (float16[2,3] y) { y = nobody.Knows(x) }"
MISMATCH = "g (float16[2,3] x) => (float16[2,3] y) { y = MatMul(x, x) }"
SEQUENCE = "g (float16[2,4] x) => (float16[2,4] y) { s = SequenceConstruct(x)  y = ConcatFromSequence<axis=0>(s) }"


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            UNKNOWN,
            r"^m.onnx: node number 0 \(Knows\): expected a graph that TensorRT-RTX imports, got an operator it does not support; spell",
        ),
        (MISMATCH, r"^m.onnx: node number 0 \(MatMul\): .*last dimension of input0 = 3 and second to last dimension of input1 = 2"),
        (SEQUENCE, r"^m.onnx: node number 0 \(SequenceConstruct\): .*got an operator it does not support"),
    ],
)
def test_what_the_parser_rejects(tmp_path: Path, graph: str, message: str) -> None:
    with pytest.raises(Failure, match=message) as caught:
        build_engine(write(tmp_path / "m.onnx", graph), tmp_path / "m.plan", sm=(86,))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.plan").exists()


def test_a_compiler_crash_is_one_line(tmp_path: Path) -> None:
    model = write(tmp_path / "m.onnx", "g (float16[2,3] x) => (float16[2,3] y) { y = MyelinWeightsTransformPlugin(x) }")
    with pytest.raises(
        Failure, match=r"^m.onnx: TensorRT-RTX: expected an engine, got a crash of its compiler \(SIG.*last words: .*"
    ) as caught:
        build_engine(model, tmp_path / "m.plan", sm=(86,))
    assert "\n" not in str(caught.value)


def quantized(zero: np.generic, step: float) -> dict[str, np.ndarray]:
    return {"s": np.array(step, np.float16), "z": np.array(zero), "w": np.ones((64, 64), np.float16)}


QDQ = """g (float16[64,64] x) => (float16[64,64] y) {
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    wq = QuantizeLinear(w, s, z)
    wd = DequantizeLinear(wq, s, z)
    y = MatMul(xd, wd)
}"""


def test_fp8_on_a_gpu_without_fp8(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    model = write(tmp_path / "m.onnx", QDQ, quantized(ml_dtypes.float8_e4m3fn(0), 0.02))
    report = build_engine(model, tmp_path / "m.plan", sm=(89, 120))
    assert report.kernels.programs[0].gemms == {"fp8": 1}
    with pytest.raises(
        UserError, match=r"^m.onnx: expected GPUs that compute in fp8_e4m3, got sm86; choose another precision, or build without"
    ):
        build_engine(model, tmp_path / "m.plan", sm=(86, 89))


def test_a_failed_build_says_why(tmp_path: Path) -> None:
    graph = """g (float16[2,64,64] x) => (float16[2,64,64] y) {
        xq = QuantizeLinear(x, s, z)
        xd = DequantizeLinear(xq, s, z)
        wd = DequantizeLinear<axis=0, block_size=32>(w4, t)
        y = MatMul(xd, wd)
    }"""
    rng = np.random.default_rng(0)
    tensors = {"s": np.array(0.02, np.float16), "z": np.array(0, np.int8), "t": rng.random((2, 64)).astype(np.float16)}
    model = onnx.load(write(tmp_path / "m.onnx", graph, tensors, opset=21))
    model.graph.initializer.append(onnx.helper.make_tensor("w4", onnx.TensorProto.INT4, [64, 64], rng.bytes(64 * 32), raw=True))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(Failure, match=r"^m.onnx: TensorRT-RTX for SM86: expected an engine, got .*is_constant.*; simplify the graph"):
        build_engine(tmp_path / "m.onnx", tmp_path / "m.plan", sm=(86,))


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ([], "no profile: .*got no shape for x"),
        ([{"z": (shape(1),) * 3}], "profile 0: .*got 'z', while the inputs are x"),
        ([{"x": ((1, 2),) * 3}], r"profile 0: .*got \(1, 2\) for 'x', whose shape is"),
        ([{"x": ((1, TOKENS, 5),) * 3}], r"profile 0: .*got \(1, 64, 5\) for 'x'"),
        ([{"x": (shape(3), shape(1), shape(4))}], "profile 0: expected smallest <= usual <= largest .*; correct the optimization profiles"),
    ],
)
def test_profiles_that_do_not_fit(tmp_path: Path, profiles: list[Profile], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_engine(block(tmp_path / "b.onnx", batch="n"), tmp_path / "b.plan", sm=(86,), profiles=profiles)


def test_requests_that_cannot_be_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write(tmp_path / "m.onnx", MISMATCH)
    with pytest.raises(UserError, match=r"expected GPUs out of SM75, .*, got SM87; choose another target"):
        build_engine(model, tmp_path / "m.plan", sm=(86, 87))
    with pytest.raises(UserError, match="got none"):
        build_engine(model, tmp_path / "m.plan", sm=())
    with pytest.raises(UserError, match="expected an ONNX file, got nothing there"):
        build_engine(tmp_path / "missing.onnx", tmp_path / "m.plan", sm=(86,))
    with pytest.raises(Failure, match=r"nowhere/m.plan: expected a place to write the engine to, got No such file or directory"):
        build_engine(block(model), tmp_path / "nowhere" / "m.plan", sm=(86,))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"expected the TensorRT-RTX package, got none installed; run: pip install 'dexport\[rtx\]'"):
        build_engine(model, tmp_path / "m.plan", sm=(86,))
