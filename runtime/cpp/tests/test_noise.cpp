#include <doctest/doctest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "error.h"
#include "noise.h"

using namespace dexport;

namespace {

std::vector<float> drawn(Noise& noise, const Shape& shape) {
    std::vector<float> values(elements_of(shape));
    noise.draw(values.data(), shape);
    return values;
}

std::string refusal(Noise& noise, const Shape& shape) {
    try {
        drawn(noise, shape);
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

}  // namespace

TEST_CASE("a seed gives the numbers of torch.randn") {
    TorchNoise noise(3);
    // torch.randn(16, generator=torch.Generator("cpu").manual_seed(3))[:3]
    const std::vector<float> values = drawn(noise, {16});
    CHECK(values[0] == doctest::Approx(-0.07664429396390915).epsilon(1e-6));
    CHECK(values[1] == doctest::Approx(0.35988152027130127).epsilon(1e-6));
    CHECK(values[15] == doctest::Approx(0.41633129119873047).epsilon(1e-6));
    TorchNoise few(3);
    CHECK(drawn(few, {1})[0] == doctest::Approx(0.8032760620117188).epsilon(1e-6));
}

TEST_CASE("only the low 32 bits of a torch seed count, all 64 of a philox seed") {
    TorchNoise one(7), same(7 + (std::uint64_t{1} << 32));
    CHECK(drawn(one, {40}) == drawn(same, {40}));
    PhiloxNoise low(7), high(7 + (std::uint64_t{1} << 32));
    CHECK(drawn(low, {40}) != drawn(high, {40}));
}

TEST_CASE("noise is standard normal and goes on from draw to draw") {
    TorchNoise torch(1);
    PhiloxNoise philox(1);
    for (Noise* noise : {static_cast<Noise*>(&torch), static_cast<Noise*>(&philox)}) {
        const std::vector<float> values = drawn(*noise, {100000});
        const double mean = std::accumulate(values.begin(), values.end(), 0.0) / 1e5;
        const double square = std::inner_product(values.begin(), values.end(), values.begin(), 0.0) / 1e5;
        CHECK(std::abs(mean) < 0.02);
        CHECK(std::abs(square - 1) < 0.02);
        CHECK(drawn(*noise, {16}) != std::vector<float>(values.begin(), values.begin() + 16));
    }
}

TEST_CASE("pictures draw from their own streams") {
    std::vector<std::unique_ptr<Noise>> streams;
    streams.push_back(std::make_unique<TorchNoise>(1));
    streams.push_back(std::make_unique<TorchNoise>(2));
    PicturesNoise pictures(std::move(streams));
    const std::vector<float> both = drawn(pictures, {2, 20});
    TorchNoise second(2);
    CHECK(std::vector<float>(both.begin() + 20, both.end()) == drawn(second, {1, 20}));
    CHECK(refusal(pictures, {3, 20}) == "noise: expected one row of noise per stream, 2, got shape [3, 20]; give one seed per picture");
}

TEST_CASE("given noise is handed out once and only in its shape") {
    std::vector<float> values = {1, 2, 3, 4};
    GivenNoise given({Dtype::float32, {2, 2}, reinterpret_cast<std::byte*>(values.data())});
    CHECK(refusal(given, {4}) == "noise: expected shape [4] for draw 0, got shape [2, 2]; give the draws in the program's order");
    CHECK(drawn(given, {2, 2}) == values);
    CHECK(refusal(given, {2, 2}) == "noise: expected noise for draw 1, got 1 draws; give as many draws as the program makes");
}
