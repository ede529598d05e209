import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from dexport.errors import UserError
from dexport.runtime.tensor_file import MAX_HEADER_BYTES, tensors_from_bytes

DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]


def _file(header: object, body: bytes = b"") -> np.ndarray[Any, np.dtype[np.uint8]]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return np.frombuffer(len(text).to_bytes(8, "little") + text + body, np.uint8)


@settings(deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.sampled_from(DTYPES).flatmap(lambda name: hnp.arrays(np.dtype(name), hnp.array_shapes(min_dims=0, min_side=0, max_side=3))),
        max_size=4,
    )
)
def test_what_the_library_writes_comes_back_bit_for_bit(tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    result = tensors_from_bytes(np.frombuffer(save(tensors, {"made": "by"}), np.uint8), "t")
    assert set(result) == set(tensors)
    for name, tensor in tensors.items():
        assert result[name].dtype == tensor.dtype and result[name].shape == tensor.shape
        assert result[name].tobytes() == tensor.tobytes()


def test_tensors_are_read_only_views() -> None:
    data = np.frombuffer(save({"a": np.arange(4, dtype=np.float32)}), np.uint8)
    tensor = tensors_from_bytes(data, "t")["a"]
    assert np.shares_memory(tensor, data) and not tensor.flags.writeable


def test_formats_that_numpy_lacks_come_as_bits() -> None:
    header = {
        "half": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
        "quarter": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [4, 5]},
    }
    result = tensors_from_bytes(_file(header, b"\x80\x3f\x00\xc0\x38"), "t")
    assert result["half"].tolist() == [0x3F80, 0xC000] and result["quarter"].tolist() == [0x38]


def _entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros(3, np.uint8), "t: expected a header of at least 8 bytes, got 3 bytes"),
        (np.full(16, 255, np.uint8), "t: expected a header of at most 8 bytes, got 18446744073709551615"),
        (np.zeros(8, np.uint8), "t: expected well-formed JSON"),
        (_file([]), "t: expected a JSON object as header, got a list of 0"),
        (_file({"a": 1}), "t: a: expected the keys dtype, shape and data_offsets, got 1"),
        (_file(_entry(dtype="F31"), b"1234"), "t: a: expected a dtype of BOOL, .*, got F31"),
        (_file(_entry(dtype=[]), b"1234"), "t: a: expected a dtype of BOOL, .*, got a list of 0"),
        (_file(_entry(shape=[-1]), b"1234"), "t: a: expected lists of whole numbers"),
        (_file(_entry(shape=[1.0]), b"1234"), "t: a: expected lists of whole numbers"),
        (_file(_entry(shape=[True]), b"1234"), "t: a: expected lists of whole numbers"),
        (_file(_entry(shape=[1] * 9), b"1234"), "t: a: expected lists of whole numbers"),
        (_file(_entry(offsets=[4]), b"1234"), "t: a: expected lists of whole numbers"),
        (_file(_entry(shape=[1 << 50]), b"1234"), "t: a: expected 4503599627370496 bytes for F32 .*, got 4"),
        (_file(_entry(shape=[0, 1 << 52, 1 << 52], offsets=[0, 0])), "t: a: expected a shape that numpy can hold"),
        (_file(_entry(offsets=[4, 8]), b"12345678"), "t: a: expected data from byte 0, at most to byte 8, got 4 to 8"),
        (_file(_entry(), b"123"), "t: a: expected data from byte 0, at most to byte 3, got 0 to 4"),
        (_file(_entry(), b"12345"), "t: expected 4 bytes of data, got 5"),
        (_file(b'{"a": {}, "a": {}}'), "t: expected well-formed JSON in UTF-8, got the key 'a' twice"),
        (_file(_entry() | {"b": _entry()["a"]}, b"12345678"), "t: b: expected data from byte 4, at most to byte 8, got 0 to 4"),
    ],
)
def test_a_malformed_file_is_refused(data: np.ndarray[Any, np.dtype[np.uint8]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tensors_from_bytes(data, "t")


def test_a_huge_header_is_refused_before_it_is_parsed() -> None:
    data = np.zeros(MAX_HEADER_BYTES + 100, np.uint8)
    data[:8] = np.frombuffer((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), np.uint8)
    with pytest.raises(UserError, match=f"expected a header of at most {MAX_HEADER_BYTES} bytes, got {MAX_HEADER_BYTES + 1}"):
        tensors_from_bytes(data, "t")
