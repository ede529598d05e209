// First kernel of lowrank_linear: activations become codes and scales, and are multiplied with the down-projection on the way.
//
// A block has 16 rows and walks along the inputs, a group of 64 at a time, which lies in shared memory for both purposes. Teams of two
// warps walk side by side, each with groups of its own, and add what they projected in the end: rows alone are too few warps for a GPU.
// Only a dynamic scale of a whole token is known too late for that: then the block reads its rows again, which have just been read.
#pragma once

#include <string.h>

#include "fragments.h"

namespace dexport::lowrank_linear {

struct QuantizeArguments {
    const unsigned char* x;  // [rows, inputs]
    const unsigned char* down;  // [rank, inputs]
    const uint16_t* given_scale;  // null, [1], or [inputs / 64] if `grouped`
    unsigned char* codes;  // [rows, inputs] int4 or int8; of 64 int8 codes those with even index come first
    uint16_t* scales;  // [1, scale_pitch], or [inputs / 64, scale_pitch] if `grouped`
    uint32_t* narrow;  // [rows, rank] in pairs
    int rows, inputs, rank, scale_pitch;
    int grouped;
};

constexpr int quantize_rows = 16, team_threads = 64, quantize_stages = 2, most_rank = 128;
constexpr int row_bytes_16 = 2 * group;

// A form of the kernel for ranks up to 32 times `tiles`: the fewer sums a thread has, the more threads there can be.
template <int tiles>
struct Ranks {
    static constexpr int rank_tiles = tiles;
    // As many as the shared memory of sm_86 has room for.
    static constexpr int teams = tiles <= 2 ? 4 : 2, threads = teams * team_threads;
    static constexpr int blocks_of_multiprocessor = tiles == 1 ? 3 : 2;

    static constexpr size_t shared_bytes(int rank) {
        return static_cast<size_t>(teams * quantize_stages * (quantize_rows + rank) * row_bytes_16);
    }
};

template <int bits>
constexpr float largest_code = bits == 4 ? 7.0F : 127.0F;

// Of a scale: the smallest number of the type, if a range of 1e-8 would give less.
template <class T>
constexpr float smallest_scale = 0.0F;
template <>
inline constexpr float smallest_scale<Half> = 0x1p-24F;

template <class T>
__device__ __forceinline__ float rounded(float x) {
    return low<T>(pack<T>(x, 0.0F));
}

// A row of zeros must not divide by zero.
template <class T, int bits>
__device__ __forceinline__ float scale_of(float absmax) {
    return fmaxf(rounded<T>(absmax / largest_code<bits>), fmaxf(rounded<T>(1e-8F / largest_code<bits>), smallest_scale<T>));
}

// The 16 numbers of a thread: a quarter of a group of a row.
struct Quarter {
    Chunk chunks[2];
};

template <class T>
__device__ __forceinline__ float absmax_of(const Quarter& x) {
    float most = 0.0F;
    for (const Chunk& chunk : x.chunks) {
        for (const uint32_t both : chunk.words) {
            most = fmaxf(most, fmaxf(fabsf(low<T>(both)), fabsf(high<T>(both))));
        }
    }
    return most;
}

// Over the four threads of a row.
__device__ __forceinline__ float most_of_row(float mine) {
    mine = fmaxf(mine, shuffle_xor(mine, 1));
    return fmaxf(mine, shuffle_xor(mine, 2));
}

// x / scale as IEEE 754 rounds it, as far as codes can tell: what is beyond every code may be any such number. One step of Newton's
// method corrects the product with the reciprocal.
struct Divisor {
    float scale, reciprocal;

    __device__ __forceinline__ explicit Divisor(float by) : scale(by), reciprocal(1.0F / by) {}

    __device__ __forceinline__ float quotient(float x) const {
        constexpr float beyond = 1024.0F;
        const float near = fminf(fmaxf(x * reciprocal, -beyond), beyond);
        return fmaf(fmaf(-near, scale, x), reciprocal, near);
    }
};

// The lowest bits of the nearest integer; float_value leaves no others.
template <int bits>
__device__ __forceinline__ uint32_t code_of(float quotient) {
    const float rounded = fminf(fmaxf(quotient, -largest_code<bits> - 1.0F), largest_code<bits>) + float_value;
    uint32_t code;
    memcpy(&code, &rounded, sizeof(code));
    return code & ((1U << bits) - 1U);
}

// Writes a quarter's codes; `codes` is where those of its group begin.
template <class T, int bits>
__device__ __forceinline__ void write_codes(unsigned char* codes, int quarter, const Quarter& x, float scale) {
    const Divisor divisor(scale);
    // Four bits: all 16 codes in order, 8 in a word. Eight bits: four in a word, two words with even and two with odd index.
    uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const uint32_t both = x.chunks[i / 4].words[i % 4];
        // Quotients are rounded to the type of x, as PyTorch does.
        const uint32_t quotients = pack<T>(divisor.quotient(low<T>(both)), divisor.quotient(high<T>(both)));
        const int place = 8 * (i % 4);
        words[i / 4] |= code_of<bits>(low<T>(quotients)) << place;
        words[bits == 4 ? i / 4 : 2 + i / 4] |= code_of<bits>(high<T>(quotients)) << (bits == 4 ? place + 4 : place);
    }
    struct alignas(8) Pair {
        uint32_t words[2];
    };
    *reinterpret_cast<Pair*>(codes + 8 * quarter) = Pair{{words[0], words[1]}};
    if (bits == 8) {
        *reinterpret_cast<Pair*>(codes + 32 + 8 * quarter) = Pair{{words[2], words[3]}};
    }
}

template <class T, int bits>
__device__ __forceinline__ unsigned char* codes_of(const QuantizeArguments& given, int row, int step) {
    return given.codes + (static_cast<size_t>(row) * static_cast<size_t>(given.inputs) + static_cast<size_t>(step * group)) * bits / 8;
}

// A group that lies in shared memory. Returns the largest magnitude of the thread's part.
template <class T, int bits>
__device__ __forceinline__ float quantize_group(const QuantizeArguments& given, const unsigned char* tile, int step, int thread) {
    const int row = thread / 4, quarter = thread % 4, all_row = static_cast<int>(blockIdx.x) * quantize_rows + row;
    Quarter x;
    for (int i = 0; i < 2; ++i) {
        x.chunks[i] = *reinterpret_cast<const Chunk*>(tile + place<row_bytes_16>(row, 2 * quarter + i));
    }
    const float most = absmax_of<T>(x);
    const bool fixed = given.given_scale != nullptr;
    if (!fixed && given.grouped == 0) {
        return most;
    }
    const int index = given.grouped != 0 ? step : 0;
    const float scale = fixed ? widen(T{given.given_scale[index]}) : scale_of<T, bits>(most_of_row(most));
    if (all_row < given.rows) {
        write_codes<T, bits>(codes_of<T, bits>(given, all_row, step), quarter, x, scale);
        if (quarter == 0) {
            given.scales[static_cast<size_t>(index) * static_cast<size_t>(given.scale_pitch) + static_cast<size_t>(all_row)] =
                static_cast<uint16_t>(pack<T>(scale, 0.0F));
        }
    }
    return most;
}

// Codes of whole rows, of which the team has every `teams`-th group, once their largest magnitude is known.
template <class T, int bits>
__device__ __forceinline__ void quantize_tokens(const QuantizeArguments& given, float most, int team, int teams, int thread) {
    const int quarter = thread % 4, row = static_cast<int>(blockIdx.x) * quantize_rows + thread / 4;
    const float scale = scale_of<T, bits>(most);
    if (row >= given.rows) {
        return;
    }
    const auto* const x = reinterpret_cast<const Quarter*>(given.x + static_cast<size_t>(row) * static_cast<size_t>(given.inputs) * 2);
    for (int step = team; step < given.inputs / group; step += teams) {
        write_codes<T, bits>(codes_of<T, bits>(given, row, step), quarter, x[4 * step + quarter], scale);
    }
    if (team == 0 && quarter == 0) {
        given.scales[row] = static_cast<uint16_t>(pack<T>(scale, 0.0F));
    }
}

// sums += x D^T of one group: a warp of a team has every other 16 of the rank.
template <class T, class R>
__device__ __forceinline__ void project_group(
    float (&sums)[R::rank_tiles][2][4], const unsigned char* x, const unsigned char* down, int rank, int warp, int lane) {
#pragma unroll
    for (int chunk = 0; chunk < 8; chunk += 2) {
        uint32_t a[4];
        load_left<row_bytes_16>(a, x, 0, chunk, lane);
#pragma unroll
        for (int i = 0; i < R::rank_tiles; ++i) {
            const int first = 32 * i + 16 * warp;
            if (first < rank) {
                uint32_t b[4];
                load_right<row_bytes_16>(b, down, first, chunk, lane);
                mma_m16n8k16<T>(sums[i][0], a, {b[0], b[1]});
                mma_m16n8k16<T>(sums[i][1], a, {b[2], b[3]});
            }
        }
    }
}

// Adds what the teams projected and writes it; `shared` has room for a number of every team, row and rank.
template <class T, class R>
__device__ __forceinline__ void write_narrow(
    const QuantizeArguments& given, const float (&sums)[R::rank_tiles][2][4], float* shared, int team, int warp, int lane) {
#pragma unroll
    for (int i = 0; i < 4 * R::rank_tiles; ++i) {
        const int tile = i / 4, side = i / 2 % 2, half = i % 2;
        const int row = lane / 4 + 8 * half, column = 32 * tile + 16 * warp + 8 * side + 2 * (lane % 4);
        if (column < given.rank) {
            float* const to = shared + (team * quantize_rows + row) * given.rank + column;
            to[0] = sums[tile][side][2 * half];
            to[1] = sums[tile][side][2 * half + 1];
        }
    }
    sync_block();
    const int all = quantize_rows * given.rank, first_row = static_cast<int>(blockIdx.x) * quantize_rows;
    for (int i = 2 * static_cast<int>(threadIdx.x); i < all; i += 2 * R::threads) {
        float sum[2] = {0.0F, 0.0F};
#pragma unroll
        for (int t = 0; t < R::teams; ++t) {
            sum[0] += shared[t * all + i];
            sum[1] += shared[t * all + i + 1];
        }
        if (first_row + i / given.rank < given.rows) {
            given.narrow[(static_cast<size_t>(first_row) * static_cast<size_t>(given.rank) + static_cast<size_t>(i)) / 2] =
                pack<T>(sum[0], sum[1]);
        }
    }
}

// The largest of what the teams found in a row; `shared` has room for a number of every team and row.
template <int teams>
__device__ __forceinline__ float most_of_teams(float mine, float* shared, int team, int thread) {
    shared[team * quantize_rows + thread / 4] = mine;
    sync_block();
    float most = 0.0F;
#pragma unroll
    for (int t = 0; t < teams; ++t) {
        most = fmaxf(most, shared[t * quantize_rows + thread / 4]);
    }
    return most;
}

template <class T, int bits, class R>
__global__ void __launch_bounds__(R::threads, R::blocks_of_multiprocessor) quantize(const QuantizeArguments given) {
    constexpr int teams = R::teams;
    const int team = static_cast<int>(threadIdx.x) / team_threads, thread = static_cast<int>(threadIdx.x) % team_threads;
    const int lane = thread % 32, warp = thread / 32;
    const int first_row = static_cast<int>(blockIdx.x) * quantize_rows, groups = given.inputs / group;
    const int steps = (groups + teams - 1) / teams;
    const size_t pitch = static_cast<size_t>(given.inputs) * 2;
    const int x_bytes = quantize_rows * row_bytes_16, stage_bytes = x_bytes + given.rank * row_bytes_16;
    unsigned char* const shared = shared_memory();
    const auto stage_of = [&](int step) { return shared + (team * quantize_stages + step % quantize_stages) * stage_bytes; };
    const auto begin_copy = [&](int step) {
        if (const int of_inputs = step * teams + team; of_inputs < groups) {
            unsigned char* const stage = stage_of(step);
            const int offset = of_inputs * row_bytes_16;
            copy_rows<row_bytes_16>(stage, given.x + offset, pitch, first_row, quantize_rows, given.rows, thread, team_threads);
            if (given.rank > 0) {
                copy_rows<row_bytes_16>(stage + x_bytes, given.down + offset, pitch, 0, given.rank, given.rank, thread, team_threads);
            }
        }
        cp_async_commit();
    };
    begin_copy(0);
    float sums[R::rank_tiles][2][4] = {}, most = 0.0F;
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<quantize_stages - 2>();
        sync_block();
        begin_copy(step + quantize_stages - 1);
        if (const int of_inputs = step * teams + team; of_inputs < groups) {
            const unsigned char* const stage = stage_of(step);
            project_group<T, R>(sums, stage, stage + x_bytes, given.rank, warp, lane);
            most = fmaxf(most, quantize_group<T, bits>(given, stage, of_inputs, thread));
        }
    }
    cp_async_wait<0>();
    sync_block();  // nobody needs what is in the stages any more
    write_narrow<T, R>(given, sums, reinterpret_cast<float*>(shared), team, warp, lane);
    if (given.given_scale == nullptr && given.grouped == 0) {
        sync_block();
        most = most_of_teams<teams>(most_of_row(most), reinterpret_cast<float*>(shared), team, thread);
        quantize_tokens<T, bits>(given, most, team, teams, thread);
    }
}

}  // namespace dexport::lowrank_linear
