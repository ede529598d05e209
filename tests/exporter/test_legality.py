"""Every rule of the legality check on a model that breaks it and on one that does not; models are written as ONNX text."""

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from dexport.errors import UserError
from dexport.exporter.legality import Problem, check_onnx_for_tensorrt

JETPACK_6 = (10, 3)
JETPACK_7 = (10, 16)


def _save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    return path


@pytest.fixture
def problems(tmp_path: Path) -> Callable[..., list[str]]:
    """Checks the body of a graph given as ONNX text; x is float[2,4]."""

    def check(
        body: str,
        *,
        tensorrt: tuple[int, int] = JETPACK_6,
        opset: int = 20,
        opset_max: int | None = None,
        out: str = "float[N,M] y",
    ) -> list[str]:
        text = f'<ir_version: 9, opset_import: ["" : {opset}, "my" : 1, "trt" : 1]> g (float[2,4] x) => ({out}) {body}'
        path = _save(onnx.parser.parse_model(text), tmp_path)
        found = check_onnx_for_tensorrt(path, tensorrt=tensorrt, opset_max=opset_max or opset)
        return [str(problem) for problem in found]

    return check


Check = Callable[..., list[str]]


def test_a_plain_model_has_no_problems(problems: Check) -> None:
    body = '<float[4,4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}> { a = MatMul(x, w) b = Softmax(a) y = Gelu<approximate = "tanh">(b) }'
    assert problems(body) == []


def test_opset_out_of_range(problems: Check) -> None:
    assert problems("{ y = Relu(x) }", opset=23, opset_max=20) == [
        "model.onnx: expected opset 9 to 20, got opset 23; export with opset 20 or lower"
    ]
    assert "got opset 8" in problems("{ y = Relu(x) }", opset=8, opset_max=20)[0]


def test_operators_by_version(problems: Check) -> None:
    body = "<float[4] g = {1,1,1,1}> { y = RMSNormalization(x, g) }"
    assert problems(body, opset=23) == [
        "RMSNormalization y: expected an operator that the parser of TensorRT 10.3 has, got RMSNormalization, which it has since 10.15; "
        "decompose it into older operators"
    ]
    assert problems(body, opset=23, tensorrt=JETPACK_7) == []
    assert "which it has since 11.0" in problems("{ y = Swish(x) }", opset=24, tensorrt=JETPACK_7)[0]


def test_operators_the_parser_never_has(problems: Check) -> None:
    body = "{ q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z) }"
    found = problems(body)
    assert "DynamicQuantizeLinear q: expected an operator that the parser of TensorRT 10.3 has, got DynamicQuantizeLinear" in found[0]


def test_an_operator_may_be_too_new_in_a_new_opset(problems: Check) -> None:
    body = (
        "<float[2] s = {1,1}, float[2] b = {0,0}> { a = Unsqueeze(x, i) n = GroupNormalization<num_groups = 1>(a, s, b) y = Squeeze(n, i) }"
    )
    body = body.replace("<float", "<int64[1] i = {0}, float", 1)
    assert problems(body, opset=20) == []
    assert "since 10.9" in problems(body, opset=21)[0]
    assert problems(body, opset=21, tensorrt=JETPACK_7) == []


def test_custom_operators_are_not_taken(problems: Check) -> None:
    body = "{ y = my.BlockSparseAttention(x) }"
    assert problems(body) == [
        "BlockSparseAttention y: expected an ONNX operator or an operator of the model's own functions, "
        "got my::BlockSparseAttention; spell it with ONNX operators"
    ]


_PLUGIN = 'plugin_version = "1", plugin_namespace = "dexport", activation_bits = 4, activation_block = 64, gelu = 0, branch = 0, gate = 0'


@pytest.mark.parametrize(
    ("attributes", "inputs", "fault"),
    [
        (f"{_PLUGIN}, bias = 0, scale = 0", "h, w, s", ""),
        (f"{_PLUGIN}, bias = 1, scale = 0", "h, w, s, s", ""),
        (f"{_PLUGIN}, bias = 1, scale = 0", "h, w, s", "the inputs x, weight, weight_scale, bias, got 3 inputs"),
        (f"{_PLUGIN}, bias = 2, scale = 0", "h, w, s", "attribute bias to be 0 or 1, got 2"),
        (f"{_PLUGIN}, bias = 0, scale = 0, more = 1", "h, w, s", "got more"),
        (f"{_PLUGIN}, bias = 0", "h, w, s", "attribute scale to be 0 or 1, got None"),
        (f"{_PLUGIN}, bias = 0, scale = 0", "x, w, x", "x of type FLOAT16 or BFLOAT16, got FLOAT"),
        (f"{_PLUGIN}, bias = 0, scale = 0", "h, s, s", "weight of type INT32, got FLOAT16"),
        (f"{_PLUGIN}, bias = 0, scale = 0", "h, w, x", "weight_scale of type FLOAT16, got FLOAT"),
        (f"{_PLUGIN}, bias = 0, scale = 0".replace('"dexport"', '""'), "h, w, s", "attribute plugin_namespace to be dexport"),
    ],
)
def test_nodes_of_a_plugin_are_as_its_manifest_says(attributes: str, inputs: str, fault: str, tmp_path: Path) -> None:
    text = f"""<ir_version: 9, opset_import: ["" : 20, "dexport" : 1]> g (float[2,64] x, float16[2,64] h) => (float16[2,8] y)
        <int32[8,8] w, float16[1,8] s> {{ y = dexport.LowrankLinear <{attributes}> ({inputs}) }}"""
    path = _save(onnx.parser.parse_model(text), tmp_path)
    found = [str(problem) for problem in check_onnx_for_tensorrt(path, tensorrt=JETPACK_6, opset_max=20, plugins=("lowrank_linear",))]
    assert len(found) == bool(fault) and fault in "".join(found)
    (unknown,) = check_onnx_for_tensorrt(path, tensorrt=JETPACK_6, opset_max=20)
    assert unknown.got == "dexport::LowrankLinear"


def test_trt_domain_by_version(problems: Check) -> None:
    body = "<float s = {1.0}> { y, z = trt.TRT_FP4DynamicQuantize(x, s) }"
    assert "since 10.8" in problems(body)[0]
    assert problems(body, tensorrt=JETPACK_7) == []


def test_local_functions_are_looked_into(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 20, "my" : 1]> g (float[2,4] x) => (float[2,4] y) { y = my.f(x) }
    <domain: "my", opset_import: ["" : 20]> f (a) => (b) { b = Det(a) }"""
    found = check_onnx_for_tensorrt(_save(onnx.parser.parse_model(text), tmp_path), tensorrt=JETPACK_6, opset_max=20)
    assert [problem.where for problem in found] == ["Det b"]


def test_subgraphs_are_looked_into(problems: Check) -> None:
    body = """<bool c = {1}> { y = If (c) <
        then_branch = t () => (float[2,4] p) { p = Relu(x) },
        else_branch = e () => (float[2,4] q) { q = BitwiseNot(x) }> }"""
    assert [text.split(":")[0] for text in problems(body)] == ["BitwiseNot q"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("double", "got DOUBLE, which it would narrow silently; cast to FLOAT"),
        ("uint16", "got UINT16; cast to a type it has"),
        ("complex64", "got COMPLEX64; compute with real and imaginary parts"),
        ("float8e5m2", "got FLOAT8E5M2"),
    ],
)
def test_element_types(problems: Check, kind: str, message: str) -> None:
    code = TensorProto.DataType.Value(kind.upper())
    found = problems(f"{{ y = Cast<to = {code}>(x) }}", out=f"{kind}[2,4] y")
    assert len(found) == 2
    assert found[0].startswith("tensor y: expected an element type that TensorRT 10.3 has")
    assert all(message in text for text in found)


def test_element_types_by_version(problems: Check) -> None:
    body = f"{{ y = Cast<to = {TensorProto.FLOAT4E2M1}>(x) }}"
    assert "FLOAT4E2M1, which it has since 10.8; choose another number format" in problems(body, opset=23)[0]
    assert problems(body, opset=23, tensorrt=JETPACK_7) == []


def test_uint8_is_legal_only_at_the_interface(problems: Check) -> None:
    assert problems(f"{{ y = Cast<to = {TensorProto.UINT8}>(x) }}", out="uint8[2,4] y") == []
    found = problems("<uint8[2] w = {1, 2}> { a = Cast<to = 1>(w) y = Relu(x) }")
    assert found == ["initializer w: expected an element type that TensorRT 10.3 has, got UINT8; cast to a type it has"]


def test_float64_constants(problems: Check) -> None:
    found = problems("{ c = Constant<value = double {1.0}>() d = Cast<to = 1>(c) y = Mul(x, d) }")
    assert "Constant c: expected an element type" in found[0]


def test_string_constants(problems: Check) -> None:
    assert "got value_string; store it as a dense tensor" in problems('{ c = Constant<value_string = "a">() y = Relu(x) }')[0]


def test_axes_must_be_constants(problems: Check) -> None:
    body = "{ s = Shape(x) i = Gather(s, zero) y = ReduceMean(x, i) }"
    found = problems(f"<int64[1] zero = {{0}}> {body}")
    assert found == ["ReduceMean y: expected input 1 to be a constant, got i, computed in the model; fold it"]
    assert problems("{ i = Constant<value_ints = [0]>() y = ReduceMean(x, i) }") == []


def test_unsupported_outputs_and_attributes(problems: Check) -> None:
    norm = "<float[4] g = {1,1,1,1}> { y, m, v = LayerNormalization(x, g) }"
    assert problems(norm) == ["LayerNormalization y: expected at most 1 outputs, got 3; decompose it"]
    resize = '<float[2] s = {1.0, 2.0}> { y = Resize<mode = "cubic">(x, , s) }'
    assert problems(resize) == ["Resize y: expected attribute mode to be nearest or linear, got cubic; decompose it"]


def test_attention_of_jetpack_7_is_limited(problems: Check) -> None:
    found = problems("{ y = Attention<q_num_heads = 2, kv_num_heads = 2>(x, x, x) }", opset=23, tensorrt=JETPACK_7)
    assert "expected attribute q_num_heads to be 0, got 2" in found[0]


QDQ = "<float s = {0.1}, int8 z = {0}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"


def test_symmetric_constant_quantization_is_legal(problems: Check) -> None:
    assert problems(QDQ) == []
    folded = QDQ.replace("{ q = QuantizeLinear(x, s, z)", "{ t = Mul(s, s) q = QuantizeLinear(x, t, z)")
    assert problems(folded) == []


def test_zero_points(problems: Check) -> None:
    found = problems(QDQ.replace("z = {0}", "z = {3}"))
    assert found[0] == "QuantizeLinear q: expected a zero point of 0, got z with other values; quantize symmetrically"
    assert len(found) == 2
    assert "none, which ONNX reads as uint8" in problems(QDQ.replace("(x, s, z)", "(x, s)").replace("(q, s, z)", "(q, s)"))[0]
    moved = "<float s = {0.1}, float t = {0.0}> { z = Cast<to = 3>(x) q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    assert "expected a constant zero point of 0, got z, computed in the model" in problems(moved)[0]
    assert "zero point z: expected an element type" in " ".join(problems(QDQ.replace("int8 z", "uint8 z")))


def test_scales_must_be_constant_before_10_13(problems: Check) -> None:
    body = "<int8 z = {0}> { s = ReduceMax<keepdims = 0>(x) q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    found = problems(body)
    assert len(found) == 2
    assert found[0] == (
        "QuantizeLinear q: expected a constant scale, which TensorRT before 10.13 needs, got s, computed in the model; "
        "fold the scale: multiply before a constant-scale Q/DQ and divide after the MatMul"
    )
    assert problems(body, tensorrt=JETPACK_7) == []


def test_activations_have_one_scale(problems: Check) -> None:
    body = (
        "<float[4] s = {1,1,1,1}, int8[4] z = {0,0,0,0}> { q = QuantizeLinear<axis = 1>(x, s, z) y = DequantizeLinear<axis = 1>(q, s, z) }"
    )
    assert problems(body) == [
        "QuantizeLinear q: expected one scale per activation tensor, got s, one per channel; "
        "use one scale per tensor, or fold the others into the weights"
    ]


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ("float s = {0.0}", "expected positive, finite scales, got 0 among the 1 of s; store them in FLOAT"),
        ("float s = {-0.5}", "got -0.5 among the 1 of s"),
        ("float[4] s = {1, 1, 0, 1}", "got 0 among the 4 of s"),
        ("float[3] s = {1, 1, 1}", "expected as many scales as axis 1 is long, got scales [3] for [2, 4]"),
        ("float[2, 2] s = {1, 1, 1, 1}", ""),
        ("float[2, 3] s = {1, 1, 1, 1, 1, 1}", "expected blocks of equal length along one axis, got scales [2, 3] for [2, 4]"),
        ("float[1, 2] s = {1, 1}", "expected blocks of equal length along one axis, got scales [1, 2] for [2, 4]"),
        ("float[1, 1, 2] s = {1, 1}", "expected one scale, one per channel, or as many dimensions as the tensor"),
    ],
)
def test_scales_of_weights(problems: Check, scale: str, message: str) -> None:
    """Codes as the parser of TensorRT 10.1 takes them; where it says nothing of a shape, neither do we."""
    codes = "int8[2, 4] w = {1, 2, 3, 4, 5, 6, 7, 8}"
    found = problems(f"<{scale}, {codes}> {{ d = DequantizeLinear<axis = 1>(w, s) y = Add(x, d) }}", opset=21)
    assert (len(found) == 1 and message in found[0]) if message else not found


def test_a_scale_that_fp16_rounds_to_nothing(problems: Check) -> None:
    body = "<float16 s = {0}, int8[4] w = {1, 2, 3, 4}> { d = DequantizeLinear(w, s) c = Cast<to = 1>(d) y = Add(x, c) }"
    assert "expected positive, finite scales, got 0 among the 1 of s" in problems(body)[0]


def test_scales_have_the_type_of_what_they_quantize(problems: Check) -> None:
    body = "<float16 s = {14336}, float t = {0.5}, int8 z = {0}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, t, z) }"
    assert problems(body) == ["QuantizeLinear q: expected scales of the input's type FLOAT, got FLOAT16; store the scales in that type"]


def test_packed_codes_have_even_rows(tmp_path: Path) -> None:
    codes = helper.make_tensor("w", TensorProto.INT4, [2, 3], [1, 2, 3, 4, 5, 6])
    scale = numpy_helper.from_array(np.ones((), np.float32), "s")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy"]
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["d"]), helper.make_node("Add", ["x", "d"], ["y"])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ports[:1], ports[1:], [codes, scale]), opset_imports=[helper.make_opsetid("", 21)]
    )
    found = check_onnx_for_tensorrt(_save(model, tmp_path), tensorrt=JETPACK_7, opset_max=21)
    assert [str(problem) for problem in found] == [
        "DequantizeLinear d: expected an even last size of a 4-bit tensor, got 3; pad it, or keep it in 8 bits"
    ]


def test_operators_without_an_integer_layer(problems: Check) -> None:
    body = "<int64[2, 4] w = {1, 2, 3, 4, 5, 6, 7, 8}> { e = Sqrt(w) y = Cast<to = 1>(e) }"
    assert problems(body) == [
        "Sqrt e: expected FLOAT or FLOAT16 or BFLOAT16, which TensorRT 10.3 computes it in, got w of type INT64; cast to FLOAT before it"
    ]
    assert problems(body, tensorrt=JETPACK_7) == [], "no table of types is known for it"
    assert "expected BOOL, which" in problems("{ y = Not(x) }", out="bool[2,4] y")[0]


@pytest.mark.parametrize("value", [0, 1])
def test_zero_points_in_external_data_are_read_and_weights_are_not(tmp_path: Path, value: int) -> None:
    weight = numpy_helper.from_array(np.ones((4, 4), np.int8), "w")
    zero = numpy_helper.from_array(np.full(4, value, np.int8), "z")
    scale = numpy_helper.from_array(np.ones(4, np.float32), "s")
    nodes = [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1), helper.make_node("MatMul", ["x", "d"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])
    graph = helper.make_graph(nodes, "g", [x], [y], [weight, zero, scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    (tmp_path / "z.bin").write_bytes(zero.raw_data)
    for tensor, name in ((model.graph.initializer[0], "missing.bin"), (model.graph.initializer[1], "z.bin")):
        onnx.external_data_helper.set_external_data(tensor, name, offset=0, length=len(tensor.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert len(check_onnx_for_tensorrt(path, tensorrt=JETPACK_6, opset_max=20)) == value


def test_files_that_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"this is not a model")
    with pytest.raises(UserError, match=r"expected an ONNX model, got .*; export the component again"):
        check_onnx_for_tensorrt(path, tensorrt=JETPACK_6, opset_max=20)
    with pytest.raises(UserError, match="FileNotFoundError"):
        check_onnx_for_tensorrt(tmp_path / "absent.onnx", tensorrt=JETPACK_6, opset_max=20)


def test_files_above_the_limit_of_protobuf(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    found = check_onnx_for_tensorrt(path, tensorrt=JETPACK_6, opset_max=20)
    assert found == [
        Problem("model.onnx", "at most 2 GiB, the limit of protobuf", "2147483648 bytes", "store the weights as external data")
    ]


def test_the_table_of_operators_agrees_with_a_real_parser() -> None:
    """TensorRT-RTX shares the parser; it lacks what is a plugin in TensorRT or newer than itself, and knows unpublished operators."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install dexport[rtx]")
    logger = rtx.Logger(rtx.Logger.ERROR)
    parser = rtx.OnnxParser(rtx.Builder(logger).create_network(0), logger)
    table = json.loads(resources.files("dexport.exporter").joinpath("tensorrt_operators.json").read_text())
    listed = {*table["operators"], *table["trt_domain"]}
    assert {name for name in listed if not parser.supports_operator(name)} <= {"DFT", "DeformConv"}
    standard = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert {name for name in standard - listed if parser.supports_operator(name)} <= {"CausalConvWithState", "LinearAttention"}
