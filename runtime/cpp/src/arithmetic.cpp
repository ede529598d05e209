#include "arithmetic.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "half.h"

namespace dexport {
namespace {

/// Numbers that are summed at a time: they stay in the first-level cache, and loops of a known length become vector instructions.
constexpr std::size_t block = 1024;
using Block = std::array<float, block>;

/// Reads `count` numbers from the `start`-th on; beyond them the block holds zeros.
void load(Dtype dtype, const std::byte* data, std::size_t start, std::size_t count, Block& values) {
    widen(dtype, data + start * bytes_of(dtype), count, values.data());
    std::fill(values.begin() + static_cast<std::ptrdiff_t>(count), values.end(), 0.0F);
}

void store(Dtype dtype, const Block& values, std::size_t start, std::size_t count, std::byte* data) {
    if (dtype == Dtype::float32) {
        std::memcpy(data + start * sizeof(float), values.data(), count * sizeof(float));
        return;
    }
    for (std::size_t index = 0; index < count; ++index) {
        const std::uint16_t half = half_from_float(values[index]);
        std::memcpy(data + (start + index) * sizeof half, &half, sizeof half);
    }
}

/// Whether a number is NaN or infinite: all bits of its exponent are set.
template <typename Bits>
std::size_t count_full_exponents(const std::byte* data, std::size_t elements, Bits exponent) {
    std::size_t found = 0;
    std::array<Bits, block> bits{};
    for (std::size_t start = 0; start < elements; start += block) {
        const std::size_t count = std::min(block, elements - start);
        bits.fill(0);
        std::memcpy(bits.data(), data + start * sizeof(Bits), count * sizeof(Bits));
        Bits here = 0;
        for (const Bits value : bits) {
            here = static_cast<Bits>(here + static_cast<Bits>((value & exponent) == exponent ? 1 : 0));
        }
        found += here;
    }
    return found;
}

/// The last axes of a shape.
struct Axes {
    const std::int64_t* sizes;
    std::size_t count;

    [[nodiscard]] std::size_t elements() const {
        std::size_t product = 1;
        for (std::size_t axis = 0; axis < count; ++axis) {
            product *= static_cast<std::size_t>(sizes[axis]);
        }
        return product;
    }
    [[nodiscard]] Axes inner() const { return {sizes + 1, count - 1}; }
};

void repeat(const std::byte* source, Axes from, std::byte* target, Axes to, std::size_t element_bytes) {
    const std::size_t elements = to.elements();
    if (from.elements() == elements) {
        std::memcpy(target, source, elements * element_bytes);
        return;
    }
    if (from.elements() == 1) {
        for (std::size_t index = 0; index < elements; ++index) {
            std::memcpy(target + index * element_bytes, source, element_bytes);
        }
        return;
    }
    // One axis off the front of `to`: its slices come one by one from the same axis of `from`, or are all the same.
    const bool has_axis = from.count == to.count, repeats = !has_axis || from.sizes[0] == 1;
    const Axes inner = has_axis ? from.inner() : from;
    const std::size_t target_step = to.inner().elements() * element_bytes;
    const std::size_t source_step = repeats ? 0 : inner.elements() * element_bytes;
    for (std::size_t index = 0; index < static_cast<std::size_t>(to.sizes[0]); ++index) {
        repeat(source + index * source_step, inner, target + index * target_step, to.inner(), element_bytes);
    }
}

}  // namespace

void add_up(const std::vector<Summand>& summands, Dtype dtype, std::byte* out, std::size_t elements) {
    Block total, values, scales;
    for (std::size_t start = 0; start < elements; start += block) {
        const std::size_t count = std::min(block, elements - start);
        bool first = true;
        for (const Summand& summand : summands) {
            load(summand.dtype, summand.data, start, count, values);
            if (summand.scales != nullptr) {
                std::copy_n(summand.scales + start, count, scales.begin());
            } else {
                scales.fill(summand.scale);
            }
            for (std::size_t index = 0; index < block; ++index) {
                values[index] *= scales[index];
            }
            if (first) {
                total = values;
                first = false;
                continue;
            }
            for (std::size_t index = 0; index < block; ++index) {
                total[index] += values[index];
            }
        }
        store(dtype, total, start, count, out);
    }
}

void widen(Dtype dtype, const std::byte* data, std::size_t elements, float* out) {
    if (dtype == Dtype::float32) {
        std::memcpy(out, data, elements * sizeof(float));
        return;
    }
    for (std::size_t index = 0; index < elements; ++index) {
        std::uint16_t half = 0;
        std::memcpy(&half, data + index * sizeof half, sizeof half);
        out[index] = float_from_half(half);
    }
}

void broadcast(const std::byte* source, const Shape& from, std::byte* target, const Shape& to, std::size_t element_bytes) {
    repeat(source, {from.data(), from.size()}, target, {to.data(), to.size()}, element_bytes);
}

std::size_t count_not_finite(Dtype dtype, const std::byte* data, std::size_t elements) {
    switch (dtype) {
        case Dtype::float16:
            return count_full_exponents<std::uint16_t>(data, elements, 0x7C00);
        case Dtype::float32:
            return count_full_exponents<std::uint32_t>(data, elements, 0x7F800000);
        case Dtype::float64:
            return count_full_exponents<std::uint64_t>(data, elements, 0x7FF0000000000000);
        default:
            return 0;
    }
}

}  // namespace dexport
