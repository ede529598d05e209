import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.exporter.engines.kernels import KernelCounts, KernelSummary, read_kernels, read_programs

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx (pip install 'dexport[rtx]')")

from dexport.exporter.engines.tensorrt_rtx import build_engine
from tests.exporter.engines.rtx_models import HEADS, TOKENS, block, write


def counts(folder: Path, graph: str, *, sm: tuple[int, ...] = (89,), tf32: bool = False) -> KernelCounts:
    report = build_engine(write(folder / "m.onnx", graph), folder / "m.plan", sm=sm, tf32=tf32)
    (program,) = report.kernels.programs
    return program


ATTENTION = """attention ({0}[2,4,64,{1}] q, {0}[2,4,{1},64] k, {0}[2,4,64,{1}] v) => ({0}[2,4,64,{1}] y) {{
    s = MatMul(q, k)
    p = Softmax<axis=-1>(s)
    y = MatMul(p, v)
}}"""


@pytest.mark.parametrize(("onnx_type", "precision"), [("float16", "fp16"), ("bfloat16", "bf16")])
def test_attention_fuses_in_half_precisions(tmp_path: Path, onnx_type: str, precision: str) -> None:
    program = counts(tmp_path, ATTENTION.format(onnx_type, 64))
    assert (program.gemms, program.attentions, program.unfused_attention) == ({}, {precision: 1}, ())


def test_attention_with_a_bias_and_two_boolean_masks(tmp_path: Path) -> None:
    """The operands then come masks first, and masks must not count for the precision."""
    program = counts(
        tmp_path,
        """g (float16[2,4,64,64] q, float16[2,4,64,64] k, float16[2,4,64,64] v,
           float16[1,4,64,64] t, bool[2,1,1,64] m, bool[1,1,64,1] n, float16 low) => (float16[2,4,64,64] y) {
            s = MatMul(q, k)
            both = And(m, n)
            mask = Where(both, t, low)
            b = Add(s, mask)
            p = Softmax<axis=-1>(b)
            y = MatMul(p, v)
        }""",
    )
    assert (program.attentions, program.gemms) == ({"fp16": 1}, {})


@pytest.mark.parametrize(("onnx_type", "head", "precision"), [("float", 64, "fp32"), ("float16", 512, "fp16")])
def test_attention_that_does_not_fuse_is_suspected(tmp_path: Path, onnx_type: str, head: int, precision: str) -> None:
    program = counts(tmp_path, ATTENTION.format(onnx_type, head))
    assert (program.gemms, program.attentions) == ({precision: 2}, {})
    (scores,) = program.unfused_attention
    assert "[2x4x64x64]" in scores and "node_of_p" in scores


def test_one_head_of_one_row_fuses_only_where_the_profile_allows_two(tmp_path: Path) -> None:
    model = write(tmp_path / "m.onnx", ATTENTION.format("float16", 64).replace("2,4", "n,1"))

    def counted(largest: int) -> KernelCounts:
        shapes = {"q": (64, 64), "k": (64, 64), "v": (64, 64)}
        profile = {name: tuple((rows, 1, *shape) for rows in (1, 1, largest)) for name, shape in shapes.items()}
        return build_engine(model, tmp_path / "m.plan", sm=(89,), profiles=[profile]).kernels.programs[0]  # type: ignore[list-item]

    assert len(counted(1).unfused_attention) == 1
    assert (counted(2).attentions, counted(2).unfused_attention) == ({"fp16": 1}, ())


def test_two_linears_with_an_activation_between_are_no_attention(tmp_path: Path) -> None:
    program = counts(
        tmp_path,
        """mlp (float16[64,64] x, float16[64,64] a, float16[64,64] b) => (float16[64,64] y) {
            h = MatMul(x, a)
            g = Sigmoid(h)
            m = Mul(h, g)
            y = MatMul(m, b)
        }""",
    )
    assert (program.gemms, program.unfused_attention) == ({"fp16": 2}, ())


@pytest.mark.parametrize(("tf32", "precision"), [(False, "fp32"), (True, "tf32")])
def test_float_gemms_name_tf32_where_it_is_allowed(tmp_path: Path, tf32: bool, precision: str) -> None:
    graph = "g (float[64,64] x, float[64,64] w, float[64] b) => (float[64,64] y) { z = MatMul(x, w)  y = Add(z, b) }"
    assert counts(tmp_path, graph, tf32=tf32).gemms == {precision: 1}


def test_convolutions_and_conversions(tmp_path: Path) -> None:
    program = counts(
        tmp_path,
        """g (float16[1,32,8,8] x, float16[32,32,3,3] w, float16[32,32,2,2] u) => (float16[1,32,16,16] y) {
            a = Conv<pads=[1,1,1,1]>(x, w)
            y = ConvTranspose<strides=[2,2], kernel_shape=[2,2]>(a, u)
        }""",
    )
    assert program.convolutions == {"fp16": 2}
    moved = counts(tmp_path, "g (float16[64,32] x) => (float[32,64] y) { t = Transpose<perm=[1,0]>(x)  y = Cast<to=1>(t) }")
    assert (moved.conversions, moved.others) == (1, 0)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    build_engine(block(folder / "block.onnx"), folder / "block.plan", sm=(86,))
    return folder / "block.plan"


@pytest.fixture(scope="module")
def graph(plan: Path) -> bytes:
    """The first compiled graph of the plan and a little of what follows."""
    content = plan.read_bytes()
    return content[content.find(b"NLYM") :][:20000]


def test_kernels_carry_shapes_and_onnx_nodes(plan: Path) -> None:
    (program,) = read_programs(plan)
    (attention,) = [k for k in program.kernels if k.kind == "attention"]
    assert attention.outputs == (f"half[{2 * HEADS}x{TOKENS}x64]",)
    assert {"node_of_scores", "node_of_weights", "node_of_mixed"} <= set(attention.layers)
    assert program.accelerators == ("sm86",)


def test_bytes_and_file_read_the_same_and_survive_json(plan: Path) -> None:
    summary = read_kernels(plan)
    assert summary == read_kernels(plan.read_bytes()) == KernelSummary.from_dict(summary.to_dict())


def test_table(plan: Path) -> None:
    head, names, row = read_kernels(plan).table().splitlines()
    assert head == "kernels for sm86"
    assert names.split()[:2] == ["program", "GEMMs"] and "4 fp16" in row and "1 fp16" in row


@pytest.mark.parametrize("content", [b"", b"not a plan", b"NLYM", b"NLYM" + b"\0" * 4 + struct.pack("<Q", 2**60) + b"header {"])
def test_no_graph_means_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p").write_bytes(content)
    for summary in (read_kernels(content), read_kernels(tmp_path / "p")):
        assert not summary.readable and summary.programs == ()
        assert summary.table() == "kernels unknown: the plan holds no readable compiled graph (other TensorRT version, or not a plan)"


def test_a_fusion_without_its_body_is_unknown_not_guessed() -> None:
    fusion = b'runtime_fusion={ name=__myl_FcAdd binary=3 output_args={ "y" } backbone=gemm }'
    text = b"header {\n  accelerators={sm86 }\n}\nmain {\n  " + fusion + b"\n}\n"
    (program,) = read_kernels(b"NLYM\0\0\0\0" + struct.pack("<Q", len(text)) + text).programs
    assert program.gemms == {"unknown": 1}


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_plans_never_raise(graph: bytes, data: st.DataObject) -> None:
    content = bytearray(graph)
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(graph) - 1))] = data.draw(st.integers(0, 255))
    read_kernels(bytes(content[: data.draw(st.integers(0, len(graph)))]))
