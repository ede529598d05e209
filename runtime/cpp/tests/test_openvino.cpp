#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <openvino/core/graph_util.hpp>
#include <openvino/core/model.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/op/convert.hpp>
#include <openvino/op/fake_quantize.hpp>
#include <openvino/op/matmul.hpp>
#include <openvino/op/multiply.hpp>
#include <openvino/op/parameter.hpp>
#include <sstream>
#include <vector>

#include "backends/openvino.h"
#include "error.h"
#include "sample_bundle.h"

using namespace dexport;

namespace {

constexpr std::size_t size = 64;

/// y = quantized x times a matrix of 127s stored as int8, as the exporter writes quantized linears.
std::shared_ptr<ov::Model> quantized_model() {
    using namespace ov::op;
    const auto number = [](float value) { return v0::Constant::create(ov::element::f32, ov::Shape{}, std::vector<float>{value}); };
    const auto x = std::make_shared<v0::Parameter>(ov::element::f32, ov::PartialShape{-1, size});
    x->output(0).set_names({"x"});
    const auto rounded = std::make_shared<v0::FakeQuantize>(x, number(-128), number(127), number(-128), number(127), 256);
    const auto stored = v0::Constant::create(ov::element::i8, ov::Shape{size, size}, std::vector<std::int8_t>(size * size, 127));
    const auto weight = std::make_shared<v1::Multiply>(std::make_shared<v0::Convert>(stored, ov::element::f32), number(1));
    const auto y = std::make_shared<v0::MatMul>(rounded, weight, false, true);
    y->output(0).set_names({"y"});
    return std::make_shared<ov::Model>(ov::OutputVector{y}, ov::ParameterVector{x});
}

std::shared_ptr<const Mapping> mapped(const std::filesystem::path& path) {
    const File file(path);
    return std::make_shared<const Mapping>(file, 0, file.size());
}

/// An engine whose weights are those of model.bin, after `change` has been made to their mapping.
std::unique_ptr<Engine> quantized_engine(const Folder& folder, const std::function<void(const std::shared_ptr<const Mapping>&)>& change = {}) {
    ov::save_model(quantized_model(), folder.path() / "model.xml", false);
    std::ostringstream xml;
    xml << std::ifstream(folder.path() / "model.xml").rdbuf();
    const auto weights = mapped(folder.path() / "model.bin");
    if (change) {
        change(weights);
    }
    return open_openvino(xml.str(), weights, "fp32", "", "model");
}

Binding binding(const std::string& port, std::vector<float>& numbers) {
    return {port, {Dtype::float32, {static_cast<std::int64_t>(numbers.size() / size), size}, reinterpret_cast<std::byte*>(numbers.data())}};
}

}  // namespace

TEST_CASE("integers are multiplied exactly, whatever the processor's int8 does, at every number of rows") {
    const Folder folder;
    const std::unique_ptr<Engine> engine = quantized_engine(folder);
    for (const std::size_t rows : {1U, 64U, 1U}) {
        std::vector<float> x(rows * size, 127), y(rows * size);
        engine->run({binding("x", x)}, {binding("y", y)}, "here");
        const float exact = size * 127 * 127;
        CHECK(std::all_of(y.begin(), y.end(), [&](float value) { return std::abs(value - exact) <= 1e-5F * exact; }));
    }
}

TEST_CASE("outputs are compared whenever they are others, not only with new inputs") {
    const Folder folder;
    const std::unique_ptr<Engine> engine = quantized_engine(folder);
    std::vector<float> x(size, 1), y(size);
    const auto refusal = [&](const Binding& output) { return refusal_of([&] { engine->run({binding("x", x)}, {output}, "here"); }); };
    Binding column = binding("y", y);
    column.tensor.shape = {size, 1};
    for (int round = 0; round < 2; ++round) {  // a refusal is not forgotten, nor does a success hide one
        CHECK(refusal(column) == "here, output 'y': expected float32 [64, 1], got float32 [1, 64]; rebuild the bundle");
        CHECK(refusal(binding("z", y)) == "here: expected outputs z, got y; rebuild the bundle");
        CHECK(refusal(binding("y", y)).empty());
        CHECK(y[0] == doctest::Approx(size * 127));
    }
}

TEST_CASE("the pages of the weights go back to the system once they are packed") {
    const Folder folder;
    std::shared_ptr<const Mapping> weights;
    const std::unique_ptr<Engine> engine = quantized_engine(folder, [&](const auto& mapping) { weights = mapping; });
    const std::uint8_t kept = weights->data()[0];
    weights->data()[0] = static_cast<std::uint8_t>(kept + 1);  // a private page, which tells from the file's
    std::vector<float> x(size, 1), y(size);
    engine->run({binding("x", x)}, {binding("y", y)}, "here");
    CHECK(weights->data()[0] == kept);
}

TEST_CASE("outputs of another name or kind are failures that say what came") {
    const Folder folder;
    std::vector<float> x(size), y(size);
    const auto refusal = [&](const Binding& output) {
        return refusal_of([&] { quantized_engine(folder)->run({binding("x", x)}, {output}, "program 'p', begin[0]"); });
    };
    CHECK(refusal(binding("z", y)) == "program 'p', begin[0]: expected outputs z, got y; rebuild the bundle");
    Binding half = binding("y", y);
    half.tensor.dtype = Dtype::float16;
    CHECK(refusal(half) == "program 'p', begin[0], output 'y': expected float16 [1, 64], got float32 [1, 64]; rebuild the bundle");
}

TEST_CASE("a shape that does not fit, and what is no model, are failures with OpenVINO's reason") {
    const Folder folder;
    std::vector<float> x(size), y(size);
    Binding wrong = binding("x", x);
    wrong.tensor.shape = {2, 32};
    const std::string text = refusal_of([&] { quantized_engine(folder)->run({wrong}, {binding("y", y)}, "here"); });
    CHECK(text.find("model: expected OpenVINO to compile x [2, 32], got ") == 0);
    CHECK(text.find('\n') == std::string::npos);
    const auto weights = mapped(folder.path() / "model.bin");
    CHECK(refusal_of([&] {
              static_cast<void>(open_openvino("<net", weights, "fp32", "", "model"));
          }).find("model: expected an OpenVINO model, got ") == 0);
}
