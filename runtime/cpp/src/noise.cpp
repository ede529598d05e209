#include "noise.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "error.h"

namespace dexport {
namespace {

constexpr double ln2 = 0x1.62e42fefa39efp-1;
constexpr double sqrt_half = 0x1.6a09e667f3bcdp-1;
constexpr double two_over_pi = 0x1.45f306dc9c883p-1;
// pi/2 in two parts; the low 20 bits of the first are zero, so that its product with a quadrant 0..4 is exact.
constexpr double half_pi_high = 0x1.921fb54400000p+0;
constexpr double half_pi_low = 0x1.0b4611a626331p-34;
constexpr double two_pi = 0x1.921fb54442d18p+2;
constexpr double two_pi_float32 = 0x1.921fb60000000p+2;

constexpr std::size_t block = 16;  // PyTorch makes normal numbers in blocks of 16: eight radii, then eight angles

template <std::size_t Terms>
using Series = std::array<double, Terms>;

constexpr Series<12> make_log_series() {
    Series<12> series{};
    for (std::size_t k = 0; k < series.size(); ++k) {
        series[k] = 1.0 / static_cast<double>(2 * k + 1);
    }
    return series;
}

/// (-1)^k / (2 k + first)!; factorials up to 17! are exact in float64.
constexpr Series<9> make_circle_series(std::size_t first) {
    Series<9> series{};
    for (std::size_t k = 0; k < series.size(); ++k) {
        double factorial = 1.0;
        for (std::size_t factor = 2; factor <= 2 * k + first; ++factor) {
            factorial *= static_cast<double>(factor);
        }
        series[k] = (k % 2 == 0 ? 1.0 : -1.0) / factorial;
    }
    return series;
}

constexpr Series<12> log_series = make_log_series();
constexpr Series<9> sine_series = make_circle_series(1), cosine_series = make_circle_series(0);

template <std::size_t Terms>
double horner(double z, const Series<Terms>& series) {
    double total = series[Terms - 1];
    for (std::size_t k = Terms - 1; k-- > 0;) {
        total = total * z + series[k];
    }
    return total;
}

double natural_log(double x) {
    int exponent = 0;
    double mantissa = std::frexp(x, &exponent);
    if (mantissa < sqrt_half) {
        mantissa *= 2.0;
        exponent -= 1;
    }
    const double s = (mantissa - 1.0) / (mantissa + 1.0);
    return exponent * ln2 + (s + s) * horner(s * s, log_series);
}

struct Pair {
    double first, second;
};

/// Two normal numbers from a uniform number in (0, 1] and an angle in [0, 2 pi] (Box and Muller, 1958): cosine first.
Pair box_muller(double radius_uniform, double angle) {
    const double radius = std::sqrt(-2.0 * natural_log(radius_uniform));
    const double quadrant = std::floor(angle * two_over_pi + 0.5);
    const double r = (angle - quadrant * half_pi_high) - quadrant * half_pi_low;
    const double z = r * r;
    double sine = r * horner(z, sine_series), cosine = horner(z, cosine_series);
    const int turn = static_cast<int>(quadrant) & 3;
    if ((turn & 1) == 1) {
        std::swap(sine, cosine);
    }
    return {radius * (turn == 1 || turn == 2 ? -cosine : cosine), radius * (turn >= 2 ? -sine : sine)};
}

using Words = std::array<std::uint32_t, 4>;

/// Ten rounds of Philox4x32; the key is the seed's low and high word.
Words philox(Words counter, std::uint64_t seed) {
    auto low = static_cast<std::uint32_t>(seed), high = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t first = std::uint64_t{counter[0]} * 0xD2511F53, second = std::uint64_t{counter[2]} * 0xCD9E8D57;
        counter = {static_cast<std::uint32_t>(second >> 32) ^ counter[1] ^ low, static_cast<std::uint32_t>(second),
                   static_cast<std::uint32_t>(first >> 32) ^ counter[3] ^ high, static_cast<std::uint32_t>(first)};
        low += 0x9E3779B9;
        high += 0xBB67AE85;
    }
    return counter;
}

}  // namespace

double TorchNoise::uniform24() {
    return static_cast<double>(words_() & 0xFFFFFF) * 0x1p-24;
}

double TorchNoise::uniform53() {
    const std::uint64_t high = words_(), low = words_();
    return static_cast<double>((high << 32 | low) & ((std::uint64_t{1} << 53) - 1)) * 0x1p-53;
}

void TorchNoise::draw(float* out, const Shape& shape) {
    const std::size_t count = elements_of(shape);
    if (count < block) {
        draw_few(out, count);
        return;
    }
    for (std::size_t start = 0; start + block <= count; start += block) {
        draw_block(out + start);
    }
    if (count % block != 0) {
        words_.discard(count % block);
        draw_block(out + count - block);
    }
}

void TorchNoise::draw_block(float* out) {
    std::array<double, block> uniform{};
    std::generate(uniform.begin(), uniform.end(), [this] { return uniform24(); });
    for (std::size_t index = 0; index < block / 2; ++index) {
        // The angle is rounded to float32 as in PyTorch, or large values would be off by 2e-6.
        const auto angle = static_cast<float>(two_pi_float32 * uniform[block / 2 + index]);
        const Pair pair = box_muller(1.0 - uniform[index], static_cast<double>(angle));
        out[index] = static_cast<float>(pair.first);
        out[block / 2 + index] = static_cast<float>(pair.second);
    }
}

void TorchNoise::draw_few(float* out, std::size_t count) {
    for (std::size_t index = 0; index < count; ++index) {
        if (kept_) {
            out[index] = static_cast<float>(*kept_);
            kept_.reset();
            continue;
        }
        const double angle = uniform53(), radius = uniform53();
        const Pair pair = box_muller(1.0 - radius, two_pi * angle);
        out[index] = static_cast<float>(pair.first);
        kept_ = pair.second;
    }
}

void PhiloxNoise::draw(float* out, const Shape& shape) {
    const std::size_t count = elements_of(shape);
    const std::uint64_t draw = draws_++;
    for (std::uint64_t index = 0; 4 * index < count; ++index) {
        const Words words = philox({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
                                    static_cast<std::uint32_t>(draw), static_cast<std::uint32_t>(draw >> 32)},
                                   seed_);
        std::array<float, 4> values{};
        for (std::size_t half = 0; half < values.size(); half += 2) {
            const Pair pair =
                box_muller((static_cast<double>(words[half]) + 1.0) * 0x1p-32, two_pi * (static_cast<double>(words[half + 1]) * 0x1p-32));
            values[half] = static_cast<float>(pair.first);
            values[half + 1] = static_cast<float>(pair.second);
        }
        std::copy_n(values.begin(), std::min<std::size_t>(4, count - 4 * index), out + 4 * index);
    }
}

void PicturesNoise::draw(float* out, const Shape& shape) {
    if (shape.empty() || static_cast<std::size_t>(shape[0]) != streams_.size()) {
        const std::string expected = "one row of noise per stream, " + std::to_string(streams_.size());
        throw user_error("noise", expected, "shape " + shape_text(shape), "give one seed per picture");
    }
    Shape row = shape;
    row[0] = 1;
    for (std::size_t index = 0; index < streams_.size(); ++index) {
        streams_[index]->draw(out + index * elements_of(row), row);
    }
}

void GivenNoise::draw(float* out, const Shape& shape) {
    if (used_) {
        throw user_error("noise", "noise for draw 1", "1 draws", "give as many draws as the program makes");
    }
    if (given_.shape != shape) {
        const std::string expected = "shape " + shape_text(shape) + " for draw 0";
        throw user_error("noise", expected, "shape " + shape_text(given_.shape), "give the draws in the program's order");
    }
    std::memcpy(out, given_.data, given_.bytes());
    used_ = true;
}

}  // namespace dexport
