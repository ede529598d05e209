#include "backends/int8_check.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <openvino/op/constant.hpp>
#include <openvino/op/convert.hpp>
#include <openvino/op/fake_quantize.hpp>
#include <openvino/op/matmul.hpp>
#include <openvino/op/multiply.hpp>
#include <openvino/op/parameter.hpp>
#include <openvino/runtime/core.hpp>
#include <vector>

namespace dexport {
namespace {

constexpr std::size_t size = 64;
constexpr int level = 127;

std::shared_ptr<ov::Model> product_of_large_numbers() {
    using namespace ov::op;
    const ov::Shape square = {size, size};
    const auto number = [](float value) { return v0::Constant::create(ov::element::f32, ov::Shape{}, std::vector<float>{value}); };
    const auto x = std::make_shared<v0::Parameter>(ov::element::f32, square);
    const auto rounded = std::make_shared<v0::FakeQuantize>(x, number(-128), number(level), number(-128), number(level), 256);
    const auto stored = v0::Constant::create(ov::element::i8, square, std::vector<std::int8_t>(size * size, level));
    const auto weight = std::make_shared<v1::Multiply>(std::make_shared<v0::Convert>(stored, ov::element::f32), number(1));
    const auto product = std::make_shared<v0::MatMul>(rounded, weight, false, true);
    return std::make_shared<ov::Model>(ov::OutputVector{product}, ov::ParameterVector{x});
}

bool try_it() {
    ov::Core core;
    const ov::AnyMap properties = {{"INFERENCE_PRECISION_HINT", "f32"}};
    ov::InferRequest request = core.compile_model(product_of_large_numbers(), "CPU", properties).create_infer_request();
    std::vector<float> numbers(size * size, level);
    request.set_input_tensor(ov::Tensor(ov::element::f32, {size, size}, numbers.data()));
    request.infer();
    const ov::Tensor result = request.get_output_tensor();
    const float* found = result.data<float>();
    constexpr double exact = static_cast<double>(size) * level * level;
    return std::all_of(found, found + result.get_size(), [](float value) { return std::abs(value - exact) <= 1e-5 * exact; });
}

}  // namespace

bool int8_is_exact() {
    static const bool exact = try_it();
    return exact;
}

}  // namespace dexport
