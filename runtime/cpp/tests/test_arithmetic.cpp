#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "arithmetic.h"
#include "half.h"

using namespace dexport;

namespace {

template <typename Number>
const std::byte* bytes(const std::vector<Number>& numbers) {
    return reinterpret_cast<const std::byte*>(numbers.data());
}

template <typename Number>
std::byte* bytes(std::vector<Number>& numbers) {
    return reinterpret_cast<std::byte*>(numbers.data());
}

}  // namespace

TEST_CASE("every float16 survives float32, and halves round to even") {
    for (unsigned bits = 0; bits < 0x10000; ++bits) {
        const auto half = static_cast<std::uint16_t>(bits);
        const float value = float_from_half(half);
        if (std::isnan(value)) {
            CHECK(std::isnan(float_from_half(half_from_float(value))));
        } else {
            REQUIRE(half_from_float(value) == half);
        }
    }
    CHECK(float_from_half(0x3555) == 0.333251953125F);
    CHECK(half_from_float(65519.996F) == 0x7BFF);
    CHECK(half_from_float(65520.0F) == 0x7C00);
    CHECK(half_from_float(0x1.002p0F) == 0x3C00);  // between 1 and the next: to even
    CHECK(half_from_float(0x1.006p0F) == 0x3C02);
    CHECK(half_from_float(0x1p-25F) == 0);
    CHECK(half_from_float(0x1.8p-24F) == 2);
    CHECK(half_from_float(-0x1p-24F) == 0x8001);
}

TEST_CASE("a sum is rounded after every product and sum, in order") {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (const std::size_t count : {1U, 7U, 1024U, 1025U, 5000U}) {
        std::vector<float> a(count), b(count), scales(count), out(count);
        for (std::vector<float>* each : {&a, &b, &scales}) {
            std::generate(each->begin(), each->end(), [&] { return normal(random); });
        }
        add_up({{Dtype::float32, bytes(a), 0.1F, nullptr},
                {Dtype::float32, bytes(b), 0, scales.data()},
                {Dtype::float32, bytes(a), -3.7F, nullptr}},
               Dtype::float32, bytes(out), count);
        for (std::size_t index = 0; index < count; ++index) {
            volatile float total = a[index] * 0.1F;  // volatile: rounded here
            volatile float product = b[index] * scales[index];
            total = total + product;
            product = a[index] * -3.7F;
            total = total + product;
            REQUIRE(out[index] == total);
        }
    }
}

TEST_CASE("a summand may be the result itself, and float16 is rounded once") {
    std::vector<float> x = {1, 2, 3};
    add_up({{Dtype::float32, bytes(x), 2, nullptr}, {Dtype::float32, bytes(x), 1, nullptr}}, Dtype::float32, bytes(x), 3);
    CHECK(x == std::vector<float>{3, 6, 9});
    std::vector<std::uint16_t> half = {half_from_float(1.5F), half_from_float(-2)};
    add_up({{Dtype::float16, bytes(half), 0.1F, nullptr}}, Dtype::float16, bytes(half), 2);
    CHECK(half[0] == half_from_float(1.5F * 0.1F));
}

TEST_CASE("rows broadcast as in numpy") {
    const std::vector<float> row = {1, 2};
    std::vector<float> out(8);
    broadcast(bytes(row), {2, 1}, bytes(out), {2, 2, 2}, sizeof(float));
    CHECK(out == std::vector<float>{1, 1, 2, 2, 1, 1, 2, 2});
    broadcast(bytes(row), {2}, bytes(out), {4, 2}, sizeof(float));
    CHECK(out == std::vector<float>{1, 2, 1, 2, 1, 2, 1, 2});
    broadcast(bytes(row), {2, 1, 1}, bytes(out), {2, 2, 2}, sizeof(float));
    CHECK(out == std::vector<float>{1, 1, 1, 1, 2, 2, 2, 2});
    broadcast(bytes(row), {}, bytes(out), {8}, sizeof(float));
    CHECK(out == std::vector<float>(8, 1));
}

TEST_CASE("numbers that are not finite are counted") {
    std::vector<float> numbers(3000, std::numeric_limits<float>::max());
    CHECK(count_not_finite(Dtype::float32, bytes(numbers), numbers.size()) == 0);
    numbers[0] = std::numeric_limits<float>::infinity(), numbers[2999] = -numbers[0], numbers[1500] = std::nanf("");
    CHECK(count_not_finite(Dtype::float32, bytes(numbers), numbers.size()) == 3);
    const std::vector<std::uint16_t> halves = {0x7C00, 0x7BFF, 0xFE00};
    CHECK(count_not_finite(Dtype::float16, bytes(halves), 3) == 2);
    CHECK(count_not_finite(Dtype::int64, bytes(numbers), 1500) == 0);
}
