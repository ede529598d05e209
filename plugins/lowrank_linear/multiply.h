// Second kernel of lowrank_linear: codes times codes on tensor cores, scales, the up-projection and the epilogue.
//
// A block makes 128 rows x 128 outputs, a warp 64 x 32. Steps of 64 inputs come first, then steps of 16 of the rank, all through the same
// stages of shared memory. Integers are summed exactly: within a group if there are scales for groups, else over all inputs.
//
// Where tensor cores multiply int8 only, int4 codes become two registers of int8, those with even and those with odd index, and are left
// in the upper halves of their bytes: 16 times too large, which the last scale takes back. The order along the inputs is free as long as
// both factors have the same, so int8 activations come with even indices first (quantize.h).
#pragma once

#include <string.h>

#include "fragments.h"

namespace dexport::lowrank_linear {

struct MultiplyArguments {
    const unsigned char* codes;  // [rows, inputs] int4 or int8, as quantize.h writes them
    const uint16_t* scales;  // [1 or inputs / 64, scale_pitch]
    const unsigned char* weight;  // [outputs, inputs / 2]
    const uint16_t* weight_scale;  // [1 or inputs / 64, outputs]
    const unsigned char* narrow;  // [rows, rank]
    const unsigned char* up;  // [outputs, rank]
    const uint32_t* bias;  // null or [outputs], in pairs as all of the following
    const uint32_t* gate;  // null or [rows / rows_of_gate, outputs]
    const uint32_t* residual;  // [rows, outputs] if there is a gate
    uint32_t* y;  // [rows, outputs]
    int rows, inputs, outputs, rank, scale_pitch, rows_of_gate;
    int activation_grouped, weight_grouped, gelu;
};

enum class Product { native, int8 };

constexpr int tile_rows = 128, tile_outputs = 128, multiply_threads = 256;
constexpr int tiles_down = 4, tiles_across = 4;  // of a warp, 16 x 8
constexpr int row_bytes_4 = group / 2;

// Stages: three of eight bits fit twice into the shared memory of sm_86.
template <int bits>
struct Stage {
    static constexpr int count = bits == 4 ? 4 : 3;
    static constexpr int row_bytes = group * bits / 8;
    static constexpr int right = tile_rows * row_bytes, scales = right + tile_outputs * row_bytes_4;
    static constexpr int weight_scales = scales + 2 * tile_rows, bytes = weight_scales + 2 * tile_outputs;
};

// sm_90 and later spell products of int4 with two of int8 and much unpacking; there we unpack, which is cheaper for whole fragments.
template <int bits, Product product>
__device__ __forceinline__ constexpr bool multiplies_int4() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    return false;
#else
    return bits == 4 && product == Product::native;
#endif
}

// Fragments of a group: one of int4, or one of even and one of odd inputs in int8.
template <bool int4, int registers>
struct Fragments {
    static constexpr int parts = int4 ? 1 : 2;
    uint32_t words[parts][registers];
};

template <bool int4, int registers>
__device__ __forceinline__ void keep(Fragments<int4, registers>& kept, const uint32_t (&codes)[4], int first) {
#pragma unroll
    for (int i = 0; i < registers; ++i) {
        if constexpr (int4) {
            kept.words[0][i] = codes[first + i];
        } else {
            kept.words[0][i] = codes[first + i] << 4 & 0xf0f0f0f0U;
            kept.words[1][i] = codes[first + i] & 0xf0f0f0f0U;
        }
    }
}

template <int bits, bool int4>
__device__ __forceinline__ void load_codes(Fragments<int4, 4>& a, const unsigned char* stage, int first, int lane) {
    if constexpr (bits == 4) {
        uint32_t codes[4];
        load_left<row_bytes_4>(codes, stage, first, 0, lane);
        keep(a, codes, 0);
    } else {
        load_left<group>(a.words[0], stage, first, 0, lane);
        load_left<group>(a.words[1], stage, first, 2, lane);
    }
}

template <bool int4>
__device__ __forceinline__ void load_weights(Fragments<int4, 2> (&b)[tiles_across], const unsigned char* right, int first, int lane) {
#pragma unroll
    for (int i = 0; i < tiles_across; i += 2) {
        uint32_t codes[4];
        load_right<row_bytes_4>(codes, right, first + 8 * i, 0, lane);
        keep(b[i], codes, 0);
        keep(b[i + 1], codes, 2);
    }
}

template <bool int4>
__device__ __forceinline__ void add_product(int32_t (&sums)[4], const Fragments<int4, 4>& a, const Fragments<int4, 2>& b) {
    if constexpr (int4) {
        mma_m16n8k64_s4(sums, a.words[0], b.words[0]);
    } else {
        mma_m16n8k32_s8(sums, a.words[0], b.words[0]);
        mma_m16n8k32_s8(sums, a.words[1], b.words[1]);
    }
}

// What is too large in the integers: 16 for every factor in the upper half of its byte.
template <int bits, bool int4>
constexpr float unit = int4 ? 1.0F : bits == 4 ? 1.0F / 256.0F : 1.0F / 16.0F;

template <class Number>
using Sums = Number[tiles_down][tiles_across][4];

// 1.5 * 2^23 as a float. Integers below 2^22 that are added to its bits are added to its value, so that sums which begin with it need
// no conversion. The largest sum of a group is 64 * 128 * 128.
constexpr int32_t float_bits = 0x4b400000;
constexpr float float_value = 12582912.0F;

__device__ __forceinline__ float as_float(int32_t sum) {
    float x;
    memcpy(&x, &sum, sizeof(x));
    return x - float_value;
}

// Where a thread is: its first row and output in the tile of its block.
struct Place {
    int lane, warp_row, warp_output, row, output;
};

__device__ __forceinline__ Place place_of(int thread) {
    const int lane = thread % 32, warp = thread / 32, row = 64 * (warp / 4), output = 32 * (warp % 4);
    return {lane, row, output, row + lane / 4, output + 2 * (lane % 4)};
}

// A group with scales of its own.
template <class T, int bits, bool int4>
__device__ __forceinline__ void add_scaled_group(Sums<float>& y, const unsigned char* stage, const Place& at) {
    const auto* const scales = reinterpret_cast<const uint16_t*>(stage + Stage<bits>::scales);
    const auto* const weight_scales = reinterpret_cast<const uint32_t*>(stage + Stage<bits>::weight_scales);
    Fragments<int4, 2> b[tiles_across];
    load_weights(b, stage + Stage<bits>::right, at.warp_output, at.lane);
    float across[tiles_across][2];
#pragma unroll
    for (int i = 0; i < tiles_across; ++i) {
        const uint32_t both = weight_scales[at.output / 2 + 4 * i];
        across[i][0] = low<T>(both) * unit<bits, int4>;
        across[i][1] = high<T>(both) * unit<bits, int4>;
    }
#pragma unroll
    for (int j = 0; j < tiles_down; ++j) {
        Fragments<int4, 4> a;
        load_codes<bits>(a, stage, at.warp_row + 16 * j, at.lane);
        const float down[2] = {widen(T{scales[at.row + 16 * j]}), widen(T{scales[at.row + 16 * j + 8]})};
#pragma unroll
        for (int i = 0; i < tiles_across; ++i) {
            int32_t sums[4] = {float_bits, float_bits, float_bits, float_bits};
            add_product(sums, a, b[i]);
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                y[j][i][r] += as_float(sums[r]) * (down[r / 2] * across[i][r % 2]);
            }
        }
    }
}

template <int bits, bool int4>
__device__ __forceinline__ void add_group(Sums<int32_t>& sums, const unsigned char* stage, const Place& at) {
    Fragments<int4, 2> b[tiles_across];
    load_weights(b, stage + Stage<bits>::right, at.warp_output, at.lane);
#pragma unroll
    for (int j = 0; j < tiles_down; ++j) {
        Fragments<int4, 4> a;
        load_codes<bits>(a, stage, at.warp_row + 16 * j, at.lane);
#pragma unroll
        for (int i = 0; i < tiles_across; ++i) {
            add_product(sums[j][i], a, b[i]);
        }
    }
}

// One scale for a row and one for an output.
template <class T>
__device__ __forceinline__ void scale_sums(
    Sums<float>& y, const Sums<int32_t>& sums, const MultiplyArguments& given, int first_row, int first_output, float unit_of_sums) {
#pragma unroll
    for (int j = 0; j < 2 * tiles_down; ++j) {
        const int row = first_row + 8 * j;
        const float down = row < given.rows ? widen(T{given.scales[row]}) : 0.0F;
#pragma unroll
        for (int i = 0; i < 2 * tiles_across; ++i) {
            const int output = first_output + 8 * (i / 2) + i % 2, r = 2 * (j % 2) + i % 2;
            const float across = output < given.outputs ? widen(T{given.weight_scale[output]}) * unit_of_sums : 0.0F;
            y[j / 2][i / 2][r] = static_cast<float>(sums[j / 2][i / 2][r]) * (down * across);
        }
    }
}

// y += (x D^T) U^T of 16 of the rank.
template <class T, int right>
__device__ __forceinline__ void add_low_rank(Sums<float>& y, const unsigned char* stage, const Place& at) {
    uint32_t b[tiles_across / 2][4];
#pragma unroll
    for (int i = 0; i < tiles_across / 2; ++i) {
        load_right<row_bytes_4>(b[i], stage + right, at.warp_output + 16 * i, 0, at.lane);
    }
#pragma unroll
    for (int j = 0; j < tiles_down; ++j) {
        uint32_t a[4];
        load_left<row_bytes_4>(a, stage, at.warp_row + 16 * j, 0, at.lane);
#pragma unroll
        for (int i = 0; i < tiles_across; ++i) {
            mma_m16n8k16<T>(y[j][i], a, {b[i / 2][2 * (i % 2)], b[i / 2][2 * (i % 2) + 1]});
        }
    }
}

// The approximation by tanh, and tanh(u) = 1 - 2 / (1 + e^2u), which has the right limits where the power overflows.
__device__ __forceinline__ float gelu(float x) {
    constexpr float twice_log2e_sqrt_2_pi = 2.0F * 1.4426950408889634F * 0.7978845608028654F;
    const float tanh_u = 1.0F - 2.0F / (1.0F + exp2_approximate(twice_log2e_sqrt_2_pi * (x + 0.044715F * x * x * x)));
    return 0.5F * x * (1.0F + tanh_u);
}

// Two neighbouring outputs of a row, from float32 to memory.
template <class T>
__device__ __forceinline__ void finish(const MultiplyArguments& given, int row, int output, float y0, float y1) {
    if (row >= given.rows || output >= given.outputs) {
        return;
    }
    const size_t width = static_cast<size_t>(given.outputs) / 2, pair = static_cast<size_t>(output) / 2;
    const size_t here = static_cast<size_t>(row) * width + pair;
    if (given.bias != nullptr) {
        y0 += low<T>(given.bias[pair]);
        y1 += high<T>(given.bias[pair]);
    }
    if (given.gelu != 0) {
        y0 = gelu(y0);
        y1 = gelu(y1);
    }
    if (given.gate != nullptr) {
        const uint32_t gate = given.gate[static_cast<size_t>(row / given.rows_of_gate) * width + pair];
        const uint32_t residual = given.residual[here];
        y0 = low<T>(residual) + low<T>(gate) * y0;
        y1 = high<T>(residual) + high<T>(gate) * y1;
    }
    given.y[here] = pack<T>(y0, y1);
}

// Begins to copy the scales of a tile's rows or outputs, 8 at a time; `all` of them exist.
__device__ __forceinline__ void copy_scales(unsigned char* to, const uint16_t* scales, int first, int all, int i) {
    const int valid = 2 * (all - first - 8 * i);
    cp_async_16(to + 16 * i, valid > 0 ? scales + first + 8 * i : scales, valid < 0 ? 0 : valid < 16 ? valid : 16);
}

// Begins to copy what a step needs: 64 inputs, or 16 of the rank.
template <int bits, bool grouped>
__device__ __forceinline__ void copy_step(
    unsigned char* stage, const MultiplyArguments& given, int step, int first_row, int first_output, int thread) {
    const int groups = given.inputs / group;
    unsigned char* const right = stage + Stage<bits>::right;
    if (step >= groups) {
        const size_t pitch = static_cast<size_t>(given.rank) * 2, offset = static_cast<size_t>(step - groups) * row_bytes_4;
        copy_rows<row_bytes_4>(stage, given.narrow + offset, pitch, first_row, tile_rows, given.rows, thread, multiply_threads);
        copy_rows<row_bytes_4>(right, given.up + offset, pitch, first_output, tile_outputs, given.outputs, thread, multiply_threads);
        return;
    }
    constexpr int row_bytes = Stage<bits>::row_bytes;
    const size_t pitch = static_cast<size_t>(groups) * row_bytes, weight_pitch = static_cast<size_t>(groups) * row_bytes_4;
    copy_rows<row_bytes>(stage, given.codes + step * row_bytes, pitch, first_row, tile_rows, given.rows, thread, multiply_threads);
    copy_rows<row_bytes_4>(
        right, given.weight + step * row_bytes_4, weight_pitch, first_output, tile_outputs, given.outputs, thread, multiply_threads);
    if constexpr (grouped) {
        const auto row_of = [step](int has_groups, int width) {
            return has_groups != 0 ? static_cast<size_t>(step) * static_cast<size_t>(width) : 0;
        };
        if (thread < tile_rows / 8) {
            const size_t offset = row_of(given.activation_grouped, given.scale_pitch);
            copy_scales(stage + Stage<bits>::scales, given.scales + offset, first_row, given.rows, thread);
        } else if (thread < (tile_rows + tile_outputs) / 8) {
            const size_t offset = row_of(given.weight_grouped, given.outputs);
            const int i = thread - tile_rows / 8;
            copy_scales(stage + Stage<bits>::weight_scales, given.weight_scale + offset, first_output, given.outputs, i);
        }
    }
}

template <class T, int bits, bool grouped, Product product>
__global__ void __launch_bounds__(multiply_threads, 1) multiply(const MultiplyArguments given) {
    constexpr bool int4 = multiplies_int4<bits, product>();
    constexpr int stages = Stage<bits>::count;
    const int thread = static_cast<int>(threadIdx.x);
    const int first_row = static_cast<int>(blockIdx.x) * tile_rows, first_output = static_cast<int>(blockIdx.y) * tile_outputs;
    const int groups = given.inputs / group, steps = groups + given.rank / 16;
    const Place at = place_of(thread);
    unsigned char* const shared = shared_memory();
    const auto begin_copy = [&](int step) {
        if (step < steps) {
            copy_step<bits, grouped>(shared + step % stages * Stage<bits>::bytes, given, step, first_row, first_output, thread);
        }
        cp_async_commit();
    };
    // The stage of a step, once it is there; begins the copy that takes the place of the step before.
    const auto next_stage = [&](int step) -> const unsigned char* {
        cp_async_wait<stages - 2>();
        sync_block();
        begin_copy(step + stages - 1);
        return shared + step % stages * Stage<bits>::bytes;
    };
    for (int step = 0; step < stages - 1; ++step) {
        begin_copy(step);
    }
    Sums<float> y = {};
    if constexpr (grouped) {
        for (int step = 0; step < groups; ++step) {
            add_scaled_group<T, bits, int4>(y, next_stage(step), at);
        }
    } else {
        Sums<int32_t> sums = {};
        for (int step = 0; step < groups; ++step) {
            add_group<bits, int4>(sums, next_stage(step), at);
        }
        scale_sums<T>(y, sums, given, first_row + at.row, first_output + at.output, unit<bits, int4>);
    }
    for (int step = groups; step < steps; ++step) {
        add_low_rank<T, Stage<bits>::right>(y, next_stage(step), at);
    }
    cp_async_wait<0>();
#pragma unroll
    for (int i = 0; i < 2 * tiles_down * tiles_across; ++i) {
        const int j = i / tiles_across / 2, half = i / tiles_across % 2, across = i % tiles_across;
        const float(&sums)[4] = y[j][across];
        finish<T>(given, first_row + at.row + 16 * j + 8 * half, first_output + at.output + 8 * across, sums[2 * half], sums[2 * half + 1]);
    }
}

}  // namespace dexport::lowrank_linear
