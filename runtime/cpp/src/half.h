#pragma once

#include <cstdint>
#include <cstring>

namespace dexport {

/// The float32 that has the value of an IEEE binary16 number, given by its bits.
inline float float_from_half(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
    const std::uint32_t exponent = half >> 10 & 31, mantissa = half & 1023;
    if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact
        const float value = static_cast<float>(mantissa) * 0x1p-24F;
        return sign != 0 ? -value : value;
    }
    const std::uint32_t bits = sign | (exponent == 31 ? 0x7F800000 : (exponent + 112) << 23) | mantissa << 13;
    float value = 0;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

/// The bits of the IEEE binary16 number nearest to a float32, ties to even; NaN stays NaN.
inline std::uint16_t half_from_float(float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
    std::uint32_t half = 0;
    if (magnitude > 0x7F800000) {
        half = 0x7E00;
    } else if (magnitude >= 0x477FF000) {  // 65520 and above round to infinity
        half = 0x7C00;
    } else if (magnitude >= 0x38800000) {  // normal: round away 13 bits, a carry goes into the exponent
        half = (magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13;
    } else if (magnitude > 0x33000000) {  // subnormal: above 2^-25, half of the smallest
        const std::uint32_t shift = 126 - (magnitude >> 23), mantissa = (magnitude & 0x7FFFFF) | 0x800000;
        half = mantissa >> shift;
        const std::uint32_t rest = mantissa & ((1U << shift) - 1), tie = 1U << (shift - 1);
        half += rest > tie || (rest == tie && (half & 1) != 0) ? 1 : 0;
    }
    return static_cast<std::uint16_t>(sign | half);
}

}  // namespace dexport
