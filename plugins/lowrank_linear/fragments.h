// What the two kernels of lowrank_linear share: tiles in shared memory, and fragments of mma read from them.
#pragma once

#include "primitives.h"

namespace dexport::lowrank_linear {

// Inputs that share a scale, and the inner size of a step of both kernels.
constexpr int group = 64;

// 1.5 * 2^23 as a float. Integers below 2^22 that are added to its bits are added to its value, and what is added to its value is rounded
// to the nearest integer.
constexpr int32_t float_bits = 0x4b400000;
constexpr float float_value = 12582912.0F;

struct alignas(16) Chunk {
    uint32_t words[4];
};

// Where 16 bytes of a row of a tile lie, in bytes. Chunks are shuffled so that eight rows of one column fall into different banks.
template <int row_bytes>
__device__ __forceinline__ int place(int row, int chunk) {
    constexpr int chunks = row_bytes / 16, rows_of_line = 8 / chunks;
    return row * row_bytes + 16 * (chunk ^ (row / rows_of_line % chunks));
}

// Begins to copy rows [first, first + rows) of a matrix, row_bytes of each; rows from `all` on become 0.
template <int row_bytes>
__device__ __forceinline__ void copy_rows(
    unsigned char* tile, const unsigned char* matrix, size_t pitch, int first, int rows, int all, int thread, int threads) {
    constexpr int chunks = row_bytes / 16;
    for (int i = thread; i < rows * chunks; i += threads) {
        const int row = i / chunks, chunk = i % chunks;
        const bool real = first + row < all;
        const unsigned char* const source = real ? matrix + static_cast<size_t>(first + row) * pitch + 16 * chunk : matrix;
        cp_async_16(tile + place<row_bytes>(row, chunk), source, real ? 16 : 0);
    }
}

// 16 rows and 32 bytes of the inner axis, as the left factor of one mma.
template <int row_bytes>
__device__ __forceinline__ void load_left(uint32_t (&a)[4], const unsigned char* tile, int first, int chunk, int lane) {
    ldmatrix_x4(a, tile + place<row_bytes>(first + lane % 16, chunk + lane / 16));
}

// The same for two right factors, with eight columns each; a column of the factor is a row of the tile.
template <int row_bytes>
__device__ __forceinline__ void load_right(uint32_t (&b)[4], const unsigned char* tile, int first, int chunk, int lane) {
    ldmatrix_x4(b, tile + place<row_bytes>(first + lane % 8 + 8 * (lane / 16), chunk + lane / 8 % 2));
}

template <class T>
__device__ __forceinline__ float low(uint32_t both) {
    return widen(T{static_cast<uint16_t>(both)});
}

template <class T>
__device__ __forceinline__ float high(uint32_t both) {
    return widen(T{static_cast<uint16_t>(both >> 16)});
}

}  // namespace dexport::lowrank_linear
