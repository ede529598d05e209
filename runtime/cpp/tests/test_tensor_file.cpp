#include <doctest/doctest.h>

#include <cstring>
#include <string>

#include "sample_bundle.h"
#include "sample_files.h"
#include "tensor_file.h"

using namespace dexport;

namespace {

Tensors read(std::string& text) {
    return tensors_from_bytes(reinterpret_cast<std::byte*>(text.data()), text.size(), "x");
}

std::string refusal(std::string text) {
    return refusal_of([&] { read(text); });
}

}  // namespace

TEST_CASE("tensors are views in the order of their data") {
    std::string text = sample_tensor_file();
    const Tensors tensors = read(text);
    CHECK(tensors.size() == 3);
    float one = 0;  // files align nothing
    std::memcpy(&one, tensors.at("a").data, sizeof one);
    CHECK(one == 1.0F);
    CHECK(tensors.at("b").dtype == Dtype::uint8);
    CHECK(static_cast<int>(tensors.at("b").data[1]) == 2);
}

TEST_CASE("hostile files are refused") {
    const std::string end = "; get the bundle again or rebuild it";
    CHECK(refusal("abc") == "x: expected a header of at least 8 bytes, got 3 bytes" + end);
    CHECK(refusal(std::string(8, '\xff')) == "x: expected a header of at most 0 bytes, got 18446744073709551615" + end);
    CHECK(refusal(tensor_file("[]", "")) == "x: expected a JSON object as header, got a list of 0" + end);
    CHECK(refusal(tensor_file("{}", "x")) == "x: expected 0 bytes of data, got 1" + end);
    CHECK(refusal(tensor_file(R"({"a": 1})", "")).find("expected the keys dtype, shape and data_offsets, got 1") != std::string::npos);
    CHECK(refusal(tensor_file(R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}})", "abcd")) ==
          "x: a: expected 8 bytes for F32 [2], got 4" + end);
    CHECK(refusal(tensor_file(R"({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}})", "abcd"))
              .find("lists of whole numbers, got shape [-1]") != std::string::npos);
    CHECK(refusal(tensor_file(R"({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}})", "ab")) ==
          "x: a: expected data from byte 0, at most to byte 2, got 1 to 2" + end);
    // The product of the sizes is 0 modulo 2^64.
    CHECK(!refusal(tensor_file(R"({"a": {"dtype": "F64", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}})", "")).empty());
}
