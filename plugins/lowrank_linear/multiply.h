// Second kernel of lowrank_linear: codes times codes on tensor cores, scales, the up-projection and the epilogue.
//
// A block makes 128 rows x 128 outputs, a warp 64 x 32; half as many rows if there are scales for groups, for sums of both kinds and scales
// do not fit into the registers of two blocks otherwise. Steps of 64 inputs come first, then steps of 16 of the rank, through the same
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

constexpr int tile_outputs = 128, multiply_threads = 256, warps_down = 2;
constexpr int tiles_across = 4;  // of a warp, 16 x 8
constexpr int row_bytes_4 = group / 2;

// How a block of threads divides its work, and what lies where in a stage of shared memory.
template <int activation_bits, bool with_groups, bool with_int4>
struct Form {
    static constexpr bool grouped = with_groups, int4 = with_int4;
    static constexpr int bits = activation_bits;
    static constexpr int tiles_down = grouped ? 2 : 4;  // of a warp
    static constexpr int warp_rows = 16 * tiles_down, rows = warps_down * warp_rows;
    // Three of eight bits fit twice into the shared memory of sm_86.
    static constexpr int stages = bits == 4 ? 4 : 3;
    static constexpr int row_bytes = group * bits / 8;
    static constexpr int right = rows * row_bytes, scales = right + tile_outputs * row_bytes_4;
    static constexpr int weight_scales = scales + 2 * rows, stage_bytes = weight_scales + 2 * tile_outputs;
    // What is too large in the integers: 16 for every factor in the upper half of its byte.
    static constexpr float unit = int4 ? 1.0F : bits == 4 ? 1.0F / 256.0F : 1.0F / 16.0F;
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

template <class F>
__device__ __forceinline__ void load_codes(Fragments<F::int4, 4>& a, const unsigned char* stage, int first, int lane) {
    if constexpr (F::bits == 4) {
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

template <class F, class Number>
using Sums = Number[F::tiles_down][tiles_across][4];

// Sums that begin with float_bits need no conversion, only float_value taken off: the largest sum of a group is 64 * 128 * 128.
__device__ __forceinline__ float as_float(int32_t sum) {
    float x;
    memcpy(&x, &sum, sizeof(x));
    return x;
}

// Where a thread is: its first row and output in the tile of its block.
struct Place {
    int lane, warp_row, warp_output, row, output;
};

template <class F>
__device__ __forceinline__ Place place_of(int thread) {
    const int lane = thread % 32, warp = thread / 32, row = F::warp_rows * (warp / 4), output = 32 * (warp % 4);
    return {lane, row, output, row + lane / 4, output + 2 * (lane % 4)};
}

// A group with scales of its own.
template <class T, class F>
__device__ __forceinline__ void add_scaled_group(Sums<F, float>& y, const unsigned char* stage, const Place& at) {
    const auto* const scales = reinterpret_cast<const uint16_t*>(stage + F::scales);
    const auto* const weight_scales = reinterpret_cast<const uint32_t*>(stage + F::weight_scales);
    Fragments<F::int4, 2> b[tiles_across];
    load_weights(b, stage + F::right, at.warp_output, at.lane);
    float across[tiles_across][2];
#pragma unroll
    for (int i = 0; i < tiles_across; ++i) {
        const uint32_t both = weight_scales[at.output / 2 + 4 * i];
        across[i][0] = low<T>(both) * F::unit;
        across[i][1] = high<T>(both) * F::unit;
    }
#pragma unroll
    for (int j = 0; j < F::tiles_down; ++j) {
        Fragments<F::int4, 4> a;
        load_codes<F>(a, stage, at.warp_row + 16 * j, at.lane);
        const float down[2] = {widen(T{scales[at.row + 16 * j]}), widen(T{scales[at.row + 16 * j + 8]})};
#pragma unroll
        for (int i = 0; i < tiles_across; ++i) {
            int32_t sums[4] = {float_bits, float_bits, float_bits, float_bits};
            add_product(sums, a, b[i]);
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                // A scale has few bits, so that its product with float_value is exact, and so is what is left.
                const float scaled = fmaf(as_float(sums[r]), across[i][r % 2], -float_value * across[i][r % 2]);
                y[j][i][r] = fmaf(scaled, down[r / 2], y[j][i][r]);
            }
        }
    }
}

template <class F>
__device__ __forceinline__ void add_group(Sums<F, int32_t>& sums, const unsigned char* stage, const Place& at) {
    Fragments<F::int4, 2> b[tiles_across];
    load_weights(b, stage + F::right, at.warp_output, at.lane);
#pragma unroll
    for (int j = 0; j < F::tiles_down; ++j) {
        Fragments<F::int4, 4> a;
        load_codes<F>(a, stage, at.warp_row + 16 * j, at.lane);
#pragma unroll
        for (int i = 0; i < tiles_across; ++i) {
            add_product(sums[j][i], a, b[i]);
        }
    }
}

// One scale for a row and one for an output.
template <class T, class F>
__device__ __forceinline__ void scale_sums(
    Sums<F, float>& y, const Sums<F, int32_t>& sums, const MultiplyArguments& given, int first_row, int first_output) {
#pragma unroll
    for (int j = 0; j < 2 * F::tiles_down; ++j) {
        const int row = first_row + 8 * j;
        const float down = row < given.rows ? widen(T{given.scales[row]}) : 0.0F;
#pragma unroll
        for (int i = 0; i < 2 * tiles_across; ++i) {
            const int output = first_output + 8 * (i / 2) + i % 2, r = 2 * (j % 2) + i % 2;
            const float across = output < given.outputs ? widen(T{given.weight_scale[output]}) * F::unit : 0.0F;
            y[j / 2][i / 2][r] = static_cast<float>(sums[j / 2][i / 2][r]) * (down * across);
        }
    }
}

// y += (x D^T) U^T of 16 of the rank.
template <class T, class F>
__device__ __forceinline__ void add_low_rank(Sums<F, float>& y, const unsigned char* stage, const Place& at) {
    uint32_t b[tiles_across / 2][4];
#pragma unroll
    for (int i = 0; i < tiles_across / 2; ++i) {
        load_right<row_bytes_4>(b[i], stage + F::right, at.warp_output + 16 * i, 0, at.lane);
    }
#pragma unroll
    for (int j = 0; j < F::tiles_down; ++j) {
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

// Where a thread's first piece of 16 bytes of a tile's rows comes from and goes to. The threads of a block copy whole rows side by side, so
// that its other pieces are a fixed number of rows further on.
template <int row_bytes, int tile_rows>
struct Pieces {
    static constexpr int of_row = row_bytes / 16, rows = multiply_threads / of_row, times = (tile_rows + rows - 1) / rows;
    const unsigned char* from;
    size_t pitch;
    int row, to, left;

    __device__ __forceinline__ Pieces(const unsigned char* matrix, size_t row_pitch, int first, int all, int thread)
        : from(matrix + static_cast<size_t>(first + thread / of_row) * row_pitch + 16 * (thread % of_row)), pitch(row_pitch),
          row(thread / of_row), to(place<row_bytes>(thread / of_row, thread % of_row)), left(all - first - thread / of_row) {}

    // Begins to copy; of rows that do not exist nothing is read.
    __device__ __forceinline__ void copy(unsigned char* tile, int offset) const {
        if (rows > tile_rows && row >= tile_rows) {
            return;
        }
#pragma unroll
        for (int i = 0; i < times; ++i) {
            cp_async_16(tile + to + i * rows * row_bytes, from + offset + static_cast<size_t>(i * rows) * pitch, i * rows < left ? 16 : 0);
        }
    }
};

// Uses step after step of what is copied in advance.
template <class F, class Copy, class Use>
__device__ __forceinline__ void pipeline(unsigned char* shared, int steps, const Copy& copy, const Use& use) {
    const auto begin_copy = [&](int step) {
        if (step < steps) {
            copy(shared + step % F::stages * F::stage_bytes, step);
        }
        cp_async_commit();
    };
    sync_block();  // nobody needs what is in the stages any more
    for (int step = 0; step < F::stages - 1; ++step) {
        begin_copy(step);
    }
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<F::stages - 2>();
        sync_block();
        begin_copy(step + F::stages - 1);
        use(shared + step % F::stages * F::stage_bytes);
    }
}

// Begins to copy the scales of a group: the first threads copy those of rows, the next ones those of outputs, 8 at a time.
template <class F>
__device__ __forceinline__ void copy_scales_of_group(
    unsigned char* stage, const MultiplyArguments& given, int step, int first_row, int first_output, int thread) {
    if (thread < F::rows / 8) {
        const size_t offset = given.activation_grouped != 0 ? static_cast<size_t>(step) * static_cast<size_t>(given.scale_pitch) : 0;
        copy_scales(stage + F::scales, given.scales + offset, first_row, given.rows, thread);
    } else if (thread < (F::rows + tile_outputs) / 8) {
        const size_t offset = given.weight_grouped != 0 ? static_cast<size_t>(step) * static_cast<size_t>(given.outputs) : 0;
        copy_scales(stage + F::weight_scales, given.weight_scale + offset, first_output, given.outputs, thread - F::rows / 8);
    }
}

// y = codes weights^T with their scales.
template <class T, class F>
__device__ __forceinline__ void multiply_codes(
    Sums<F, float>& y, unsigned char* shared, const MultiplyArguments& given, int first_row, int first_output, const Place& at) {
    const int thread = static_cast<int>(threadIdx.x), groups = given.inputs / group;
    const size_t pitch = static_cast<size_t>(groups) * F::row_bytes, weight_pitch = static_cast<size_t>(groups) * row_bytes_4;
    const Pieces<F::row_bytes, F::rows> codes(given.codes, pitch, first_row, given.rows, thread);
    const Pieces<row_bytes_4, tile_outputs> weights(given.weight, weight_pitch, first_output, given.outputs, thread);
    const auto copy = [&](unsigned char* stage, int step) {
        codes.copy(stage, step * F::row_bytes);
        weights.copy(stage + F::right, step * row_bytes_4);
        if constexpr (F::grouped) {
            copy_scales_of_group<F>(stage, given, step, first_row, first_output, thread);
        }
    };
    if constexpr (F::grouped) {
        pipeline<F>(shared, groups, copy, [&](const unsigned char* stage) { add_scaled_group<T, F>(y, stage, at); });
    } else {
        Sums<F, int32_t> sums = {};
        pipeline<F>(shared, groups, copy, [&](const unsigned char* stage) { add_group<F>(sums, stage, at); });
        scale_sums<T, F>(y, sums, given, first_row + at.row, first_output + at.output);
    }
}

// y += (x D^T) U^T.
template <class T, class F>
__device__ __forceinline__ void multiply_low_rank(
    Sums<F, float>& y, unsigned char* shared, const MultiplyArguments& given, int first_row, int first_output, const Place& at) {
    const int thread = static_cast<int>(threadIdx.x);
    const size_t pitch = static_cast<size_t>(given.rank) * 2;
    const Pieces<row_bytes_4, F::rows> narrow(given.narrow, pitch, first_row, given.rows, thread);
    const Pieces<row_bytes_4, tile_outputs> up(given.up, pitch, first_output, given.outputs, thread);
    const auto copy = [&](unsigned char* stage, int step) {
        narrow.copy(stage, step * row_bytes_4);
        up.copy(stage + F::right, step * row_bytes_4);
    };
    pipeline<F>(shared, given.rank / 16, copy, [&](const unsigned char* stage) { add_low_rank<T, F>(y, stage, at); });
}

template <class T, int bits, bool grouped, Product product>
__global__ void __launch_bounds__(multiply_threads, 2) multiply(const MultiplyArguments given) {
    using F = Form<bits, grouped, multiplies_int4<bits, product>()>;
    const int first_row = static_cast<int>(blockIdx.x) * F::rows, first_output = static_cast<int>(blockIdx.y) * tile_outputs;
    const Place at = place_of<F>(static_cast<int>(threadIdx.x));
    unsigned char* const shared = shared_memory();
    Sums<F, float> y = {};
    multiply_codes<T, F>(y, shared, given, first_row, first_output, at);
    if (given.rank > 0) {
        multiply_low_rank<T, F>(y, shared, given, first_row, first_output, at);
    }
    cp_async_wait<0>();
#pragma unroll
    for (int i = 0; i < 2 * F::tiles_down * tiles_across; ++i) {
        const int j = i / tiles_across / 2, half = i / tiles_across % 2, across = i % tiles_across;
        const float(&sums)[4] = y[j][across];
        finish<T>(given, first_row + at.row + 16 * j + 8 * half, first_output + at.output + 8 * across, sums[2 * half], sums[2 * half + 1]);
    }
}

}  // namespace dexport::lowrank_linear
