from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from dexport.errors import UserError
from dexport.runtime import onnx_scan
from dexport.runtime.bundle import ONNX_DOMAINS
from dexport.runtime.onnx_scan import OnnxSummary, scan_onnx
from tests.runtime.sample_bundle import onnx_with_external_weights


def _scan(data: bytes, domains: frozenset[str] = ONNX_DOMAINS, **sizes: int) -> OnnxSummary:
    return scan_onnx(memoryview(data), "loop.onnx", sizes={name.replace("_", "."): size for name, size in sizes.items()}, domains=domains)


def _parsed(text: str) -> bytes:
    return onnx.parser.parse_model(text).SerializeToString()


def _with_tensor(tensor: TensorProto) -> bytes:
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph([node], "g", [], [output])).SerializeToString()


def test_a_model_with_external_weights_is_summarised() -> None:
    summary = _scan(onnx_with_external_weights(), loop_bin=24)
    assert summary.opsets == {"": 20} and summary.operators == Counter({("", "Add"): 1}) and summary.external == {"loop.bin"}


def test_every_way_to_store_numbers_passes(tmp_path: Path) -> None:
    arrays = [np.ones((2, 3), dtype) for dtype in ("f4", "f2", "f8", "i1", "u1", "i4", "i8", "?", "c8")]
    tensors = [numpy_helper.from_array(array, f"raw{index}") for index, array in enumerate(arrays)]
    for kind, values in [
        (TensorProto.FLOAT, [1.5]),
        (TensorProto.INT64, [-1, 1 << 40]),
        (TensorProto.DOUBLE, [2.0]),
        (TensorProto.INT32, [-7]),
        (TensorProto.FLOAT16, [0.5]),
        (TensorProto.STRING, [b"a"]),
        (TensorProto.INT4, [1, -2, 3]),
    ]:
        tensors.append(helper.make_tensor(f"typed{kind}", kind, [len(values)], values))
    sparse = helper.make_sparse_tensor(helper.make_tensor("s", 1, [1], [1.0]), helper.make_tensor("i", 7, [1], [2]), [4])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [], tensors)
    graph.sparse_initializer.append(sparse)
    model = helper.make_model(graph)
    assert _scan(model.SerializeToString()).external == frozenset()
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    assert _scan((tmp_path / "m.onnx").read_bytes(), m_bin=(tmp_path / "m.bin").stat().st_size).external == {"m.bin"}


def test_nodes_in_branches_and_in_functions_count() -> None:
    data = _parsed("""<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
        g (bool c, float[2] x) => (float[2] y) {
            y = If (c) <then_branch = t () => (float[2] a) { a = own.Twice(x) }, else_branch = e () => (float[2] b) { b = Relu(x) }>
        }
        <domain: "own", opset_import: ["" : 20]> Twice (x) => (y) { y = Add(x, x) }""")
    assert _scan(data).operators == Counter({("", "If"): 1, ("own", "Twice"): 1, ("", "Relu"): 1, ("", "Add"): 1})


@pytest.mark.parametrize("place", ["graph", "branch", "function"])
def test_an_operator_from_elsewhere_is_refused_wherever_it_hides(place: str) -> None:
    inner = {name: "evil.Run(x)" if name == place else "Relu(x)" for name in ("graph", "branch", "function")}
    data = _parsed(f"""<ir_version: 10, opset_import: ["" : 20, "own" : 1, "evil" : 1]>
        g (bool c, float[2] x) => (float[2] y) {{
            z = {inner["graph"]}
            v = own.Twice(z)
            y = If (c) <then_branch = t () => (float[2] a) {{ a = {inner["branch"]} }},
                        else_branch = e () => (float[2] b) {{ b = Relu(v) }}>
        }}
        <domain: "own", opset_import: ["" : 20, "evil" : 1]> Twice (x) => (y) {{ y = {inner["function"]} }}""")
    message = (
        "loop.onnx: expected operators of ONNX or ai.onnx.ml or com.microsoft or dexport or trt, got 'Run' of 'evil'; get the bundle again"
    )
    with pytest.raises(UserError, match=message):
        _scan(data)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", "a\\b", "C:/x", ""])
def test_weights_elsewhere_are_refused(location: str) -> None:
    with pytest.raises(UserError, match=r"loop.onnx: external data: expected a plain relative path .*; get the bundle again"):
        _scan(onnx_with_external_weights(location=location), loop_bin=24)


def test_weights_in_a_file_that_the_bundle_lacks_are_refused() -> None:
    with pytest.raises(UserError, match=r"loop.onnx: expected weights in a file of the bundle, got 'loop.bin'"):
        _scan(onnx_with_external_weights())


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "8"}, "expected weights within the 24 bytes of loop.bin, got 24 bytes from byte 8"),
        ({"length": "99999999999"}, "expected weights within the 24 bytes of loop.bin, got 99999999999 bytes from byte 0"),
        ({"length": "20"}, "expected 20 bytes for a tensor, got 24 declared by its shape"),
        ({"offset": "-1"}, "expected a number of bytes, got '-1'"),
        ({"offset": "1e3"}, "expected a number of bytes, got '1e3'"),
        ({"basepath": "/"}, "expected external data with location, offset and length, got 'basepath'"),
    ],
)
def test_wrong_stretches_of_weights_are_refused(entries: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=f"loop.onnx: {message}"):
        _scan(onnx_with_external_weights(**entries), loop_bin=24)


def test_the_length_may_be_left_to_the_file() -> None:
    model = onnx.load_from_string(onnx_with_external_weights())
    del model.graph.initializer[0].external_data[1:]
    assert _scan(model.SerializeToString(), loop_bin=24).external == {"loop.bin"}
    with pytest.raises(UserError, match=r"expected 23 bytes for a tensor, got 24 declared"):
        _scan(model.SerializeToString(), loop_bin=23)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            TensorProto(data_type=1, dims=[1 << 40], raw_data=b"1234"),
            "expected 4 bytes for a tensor, got 4398046511104 declared by its shape",
        ),
        (TensorProto(data_type=1, dims=[-1], raw_data=b"1234"), "expected 4 bytes for a tensor, got 73786976294838206460 declared"),
        (TensorProto(data_type=1, dims=[1 << 62] * 64), "expected 0 bytes for a tensor"),
        (TensorProto(data_type=99, dims=[1], raw_data=b"1234"), "expected a tensor of a known type, got type 99"),
        (TensorProto(data_type=1, data_location=TensorProto.EXTERNAL), "external data: expected a plain relative path"),
    ],
)
def test_a_tensor_that_declares_more_than_it_has_is_refused(tensor: TensorProto, message: str) -> None:
    with pytest.raises(UserError, match=f"loop.onnx: {message}"):
        _scan(_with_tensor(tensor))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected an ONNX model, got a file that names no operator set"),
        (b"\x08", "expected a protobuf number, got none at byte 1"),
        (b"\x08" + b"\xff" * 11, "expected a protobuf number, got none at byte 11"),
        (b"\x3a\x7f", "expected fields within their message, got field 7 up to byte 129 of 2"),
        (b"\x00\x00", "expected fields within their message, got field 0"),
        (b"\x0b", "expected a protobuf field, got wire type 3 at byte 1"),
        (b"\x38\x01", "expected field 7 of Model as a message, got wire type 0"),
        (b"<?xml version='1.0'?>" * 3, "expected "),
    ],
)
def test_what_is_no_protobuf_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"loop.onnx: {message}"):
        _scan(data)


def _message(number: int, content: bytes) -> bytes:
    length, size = len(content), b""
    while length >= 0x80:
        size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def test_graphs_nested_without_end_are_refused() -> None:
    data = b""
    for _ in range(30):
        data = _message(1, _message(5, _message(6, data)))  # graph: node: attribute: graph
    with pytest.raises(UserError, match=r"loop.onnx: expected messages nested at most 24 deep, got deeper"):
        _scan(_message(7, data))


def test_fields_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_scan, "MAX_FIELDS", 1000)
    with pytest.raises(UserError, match=r"loop.onnx: expected at most 1000 fields, got more"):
        _scan(_message(7, b"\x10\x01" * 1001))


def test_dimensions_without_end_are_refused() -> None:
    for dims in (b"\x08\x7f" * 65, _message(1, b"\x7f" * 1_000_000)):
        with pytest.raises(UserError, match=r"loop.onnx: expected a tensor of at most 64 dimensions, got more"):
            _scan(_message(7, _message(5, dims)))


def test_operators_without_end_are_refused() -> None:
    nodes = b"".join(_message(1, _message(4, str(index).encode())) for index in range(5000))
    with pytest.raises(UserError, match=r"loop.onnx: expected at most 4096 different operators, got more"):
        _scan(_message(7, nodes))


def test_a_long_name_is_refused() -> None:
    model = onnx.load_from_string(onnx_with_external_weights())
    model.graph.node[0].op_type = "A" * 5000
    with pytest.raises(UserError, match=r"loop.onnx: expected a name of at most 4096 bytes, got 5000 bytes"):
        _scan(model.SerializeToString(), loop_bin=24)


def test_a_file_beyond_the_limit_of_protobuf_is_refused() -> None:
    with pytest.raises(UserError, match=r"loop.onnx: expected an ONNX file of at most 2147483647 bytes, got 2147483648 bytes"):
        scan_onnx(np.broadcast_to(np.uint8(0), (1 << 31,)).data, "loop.onnx", sizes={}, domains=ONNX_DOMAINS)
