// Device primitives on a processor; included by primitives.h, which says what they are for. The comments of primitives_ptx.h hold here too.
//
// Layouts are those of the PTX ISA ("Matrix fragments for mma.m16n8k16 / k32 / k64", "ldmatrix"). With g = lane / 4, t = lane % 4 and E
// elements of a register, element e of register r is
//   of a     row g + 8 (r % 2), column 4 E (r / 2) + E t + e
//   of b     row 4 E r + E t + e, column g
//   of sums  (one element) row g + 8 (r / 2), column 2 t + r % 2
#pragma once

#include "emulation.h"

namespace dexport {

struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

namespace emulation {

template <class To, class From>
To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

inline uint16_t round_to(Half, float x) {
    const auto sign = static_cast<uint16_t>(bit_cast<uint32_t>(x) >> 16 & 0x8000U);
    uint32_t bits = bit_cast<uint32_t>(x) & 0x7fffffffU;
    if (bits > 0x7f800000U) {
        return 0x7fff;
    }
    if (bits >= 0x477ff000U) {  // 65520, which rounds to infinity
        return sign | 0x7c00U;
    }
    if (bits < 0x38800000U) {  // 2^-14: the result has no exponent of its own
        return static_cast<uint16_t>(sign | static_cast<uint16_t>(nearbyintf(fabsf(x) * 16777216.0F)));
    }
    bits += 0x0fffU + (bits >> 13 & 1U);
    return static_cast<uint16_t>(sign | (bits - 0x38000000U) >> 13);
}

inline uint16_t round_to(BFloat16, float x) {
    const auto bits = bit_cast<uint32_t>(x);
    return x != x ? uint16_t{0x7fff} : static_cast<uint16_t>((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16);
}

}  // namespace emulation

template <class T>
uint32_t pack(float low, float high) {
    return static_cast<uint32_t>(emulation::round_to(T{}, high)) << 16 | emulation::round_to(T{}, low);
}

inline float widen(Half x) {
    const uint32_t exponent = x.bits >> 10 & 31U, fraction = x.bits & 0x3ffU;
    const float size = exponent == 0    ? ldexpf(static_cast<float>(fraction), -24)
                       : exponent == 31 ? (fraction == 0 ? INFINITY : NAN)
                                        : emulation::bit_cast<float>((exponent + 112U) << 23 | fraction << 13);
    return (x.bits & 0x8000U) != 0 ? -size : size;
}

inline float widen(BFloat16 x) {
    return emulation::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

inline float exp2_approximate(float x) {
    return exp2f(x);
}

namespace emulation {

// Elements as they lie in a register.
struct HalfElements {
    using Sum = float;
    static constexpr int per_register = 2;
    static double at(uint32_t r, int e) { return widen(Half{static_cast<uint16_t>(r >> (16 * e))}); }
};
struct BFloat16Elements {
    using Sum = float;
    static constexpr int per_register = 2;
    static double at(uint32_t r, int e) { return widen(BFloat16{static_cast<uint16_t>(r >> (16 * e))}); }
};
template <int bits>
struct IntegerElements {
    using Sum = int32_t;
    static constexpr int per_register = 32 / bits;
    // Up to the top and down again, which copies the sign.
    static double at(uint32_t r, int e) { return static_cast<int32_t>(r << (32 - bits * (e + 1))) >> (32 - bits); }
};

template <class Elements>
struct Product {
    typename Elements::Sum* sums;
    const uint32_t* a;
    const uint32_t* b;
};

// Of the 32 lanes' products; sums of doubles are exact for all these formats, up to the order of halves.
template <class Elements>
void multiply(void* const* lanes) {
    constexpr int per = Elements::per_register, inner = 8 * per;
    const auto lane = [&](int i) -> const Product<Elements>& { return *static_cast<const Product<Elements>*>(lanes[i]); };
    double a[16][inner], b[inner][8];
    for (int i = 0; i < warp_size; ++i) {
        const int g = i / 4, t = i % 4;
        for (int e = 0; e < per; ++e) {
            for (int r = 0; r < 4; ++r) {
                a[g + 8 * (r % 2)][4 * per * (r / 2) + per * t + e] = Elements::at(lane(i).a[r], e);
            }
            for (int r = 0; r < 2; ++r) {
                b[4 * per * r + per * t + e][g] = Elements::at(lane(i).b[r], e);
            }
        }
    }
    for (int i = 0; i < warp_size; ++i) {
        for (int r = 0; r < 4; ++r) {
            const int row = i / 4 + 8 * (r / 2), column = 2 * (i % 4) + r % 2;
            double sum = static_cast<double>(lane(i).sums[r]);
            for (int k = 0; k < inner; ++k) {
                sum += a[row][k] * b[k][column];
            }
            lane(i).sums[r] = static_cast<typename Elements::Sum>(sum);
        }
    }
}

template <class Elements>
void mma(const char* name, typename Elements::Sum (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Product<Elements> mine{sums, a, b};
    Block::running->meet_warp(name, &mine, multiply<Elements>);
}

inline void mma_of(Half, float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma<HalfElements>("mma f16", sums, a, b);
}
inline void mma_of(BFloat16, float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma<BFloat16Elements>("mma bf16", sums, a, b);
}

struct Rows {
    uint32_t* registers;
    const unsigned char* row;
};

template <bool transposed>
void load_matrices(void* const* lanes) {
    const auto lane = [&](int i) -> const Rows& { return *static_cast<const Rows*>(lanes[i]); };
    for (int i = 0; i < warp_size; ++i) {
        for (int matrix = 0; matrix < 4; ++matrix) {
            uint16_t both[2];
            for (int e = 0; e < 2; ++e) {
                const int row = transposed ? 2 * (i % 4) + e : i / 4, column = transposed ? i / 4 : 2 * (i % 4) + e;
                std::memcpy(&both[e], lane(8 * matrix + row).row + 2 * column, 2);
            }
            lane(i).registers[matrix] = static_cast<uint32_t>(both[1]) << 16 | both[0];
        }
    }
}

template <bool transposed>
void ldmatrix(uint32_t (&registers)[4], const void* row) {
    Block& block = *Block::running;
    if (!block.holds(row, 16) || reinterpret_cast<uintptr_t>(row) % 16 != 0) {
        block.fail("ldmatrix of a row outside of shared memory or not aligned to 16 bytes");
    }
    Rows mine{registers, static_cast<const unsigned char*>(row)};
    block.meet_warp(transposed ? "ldmatrix.trans" : "ldmatrix", &mine, load_matrices<transposed>);
}

template <class T>
struct Exchange {
    T value;
    int mask;
    T result;
};

template <class T>
void exchange(void* const* lanes) {
    for (int i = 0; i < warp_size; ++i) {
        auto& mine = *static_cast<Exchange<T>*>(lanes[i]);
        mine.result = static_cast<Exchange<T>*>(lanes[i ^ mine.mask])->value;
    }
}

}  // namespace emulation

template <class T>
void mma_m16n8k16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulation::mma_of(T{}, sums, a, b);
}
inline void mma_m16n8k32_s8(int32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulation::mma<emulation::IntegerElements<8>>("mma s8", sums, a, b);
}
inline void mma_m16n8k64_s4(int32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulation::mma<emulation::IntegerElements<4>>("mma s4", sums, a, b);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    emulation::ldmatrix<false>(r, row);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    emulation::ldmatrix<true>(r, row);
}

inline void cp_async_16(void* to_shared, const void* source, int valid_bytes) {
    emulation::Block& block = *emulation::Block::running;
    if (!block.holds(to_shared, 16) || (reinterpret_cast<uintptr_t>(to_shared) | reinterpret_cast<uintptr_t>(source)) % 16 != 0 ||
        valid_bytes < 0 || valid_bytes > 16) {
        block.fail("cp_async_16 outside of shared memory, not aligned to 16 bytes or of more than 16 bytes");
    }
    std::memset(to_shared, emulation::unwritten, 16);
    block.fiber().copies.back().push_back({static_cast<unsigned char*>(to_shared), static_cast<const unsigned char*>(source), valid_bytes});
}

inline void cp_async_commit() {
    emulation::Block::running->fiber().copies.emplace_back();
}

template <int newest>
void cp_async_wait() {
    auto& groups = emulation::Block::running->fiber().copies;
    // The open group is no group yet.
    while (groups.size() - 1 > newest) {
        for (const emulation::Copy& copy : groups.front()) {
            std::memset(copy.to, 0, 16);
            std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.valid_bytes));
        }
        groups.erase(groups.begin());
    }
}

template <class T>
T shuffle_xor(T value, int mask) {
    emulation::Exchange<T> mine{value, mask, {}};
    emulation::Block::running->meet_warp("shuffle", &mine, emulation::exchange<T>);
    return mine.result;
}

inline void sync_block() {
    emulation::Block::running->meet_block();
}

inline unsigned char* shared_memory() {
    return emulation::Block::running->shared();
}

}  // namespace dexport
