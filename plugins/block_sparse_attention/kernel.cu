// Block-sparse attention with online softmax (FlashAttention-2, arXiv 2307.08691, algorithm 1) over listed blocks of keys.
//
// A block of 4 warps owns 64 or 128 rows of queries of one head; each warp 16 or 32 of them. Keys come in tiles of 64 by cp.async, into
// one buffer of keys and one of values: while scores are computed the values of the same tile are on their way, and while values are
// summed the next tile's keys. The wide form reads each tile once for 128 rows and keeps its queries in shared memory, the narrow
// one keeps them in registers.
//
// Rows of shared memory are an odd number of 16-byte pieces apart, so that the 8 rows of a matrix lie in different banks. A head of 72
// is widened to 80 by zeros, for products are over 16.
#include "launcher.h"
#include "primitives.h"

namespace {

using dexport::BFloat16;
using dexport::Half;

constexpr int warps = 4, threads = 32 * warps, tile_keys = 64;
constexpr int key_tiles = tile_keys / 8;
constexpr float log2_e = 1.4426950408889634F, ln_2 = 0.6931471805599453F;
constexpr int mode_dense = 0, mode_listed = 1;

template <class Number, int size, int tiles, bool without_bias>
struct Shape {
    using T = Number;
    // Without a bias, and with a factor that is not negative, the largest of the products is that of the scores, and only the last tile
    // needs a mask: the factor then comes with the exponential.
    static constexpr bool plain = without_bias;
    static constexpr int head_size = size;
    // Of 16 rows, that a warp owns.
    static constexpr int row_tiles = tiles;
    static constexpr int rows = warps * 16 * row_tiles;
    // Pieces of 16 bytes, each 8 numbers of a row.
    static constexpr int pieces = (head_size + 15) / 16 * 2;
    static constexpr int stride = (pieces | 1) * 16;
    static constexpr int inner_steps = pieces / 2;
    static constexpr bool queries_in_registers = row_tiles == 1;
    static constexpr size_t shared_bytes = size_t{rows + 2 * tile_keys} * stride;
};

// The keys that a block of queries sees, tile after tile.
struct KeyTiles {
    const int32_t* list;  // null: all keys
    int key_block, key_tokens, count;

    // First key of a tile; key_tokens where the list names no block.
    __device__ int first_key(int tile) const {
        if (list == nullptr) {
            return tile * tile_keys;
        }
        const int per_block = key_block / tile_keys;
        const int block = list[tile / per_block];
        const bool exists = block >= 0 && block < (key_tokens + key_block - 1) / key_block;
        return exists ? block * key_block + tile % per_block * tile_keys : key_tokens;
    }
};

template <class S>
struct Accumulators {
    float out[S::row_tiles][S::pieces][4];
    // Of rows g and g + 8; sums are over the columns of this lane only, until the end.
    float largest[S::row_tiles][2];
    float sum[S::row_tiles][2];
};

__device__ __forceinline__ KeyTiles key_tiles_of(const DexportBlockSparseAttention& given, int batch, int head, int first_row) {
    const int mode = given.modes == nullptr ? mode_listed : given.modes[head];
    KeyTiles tiles{nullptr, given.key_block, given.key_tokens, 0};
    if (mode == mode_dense || (mode == mode_listed && given.counts == nullptr)) {
        tiles.count = (given.key_tokens + tile_keys - 1) / tile_keys;
    } else if (mode == mode_listed) {
        const int64_t query_blocks = (given.query_tokens + given.query_block - 1) / given.query_block;
        const int64_t of = (given.list_batch == 1 ? 0 : batch) * int64_t{given.list_heads} + (given.list_heads == 1 ? 0 : head);
        const int64_t row = of * query_blocks + first_row / given.query_block;
        const int count = given.counts[row];
        tiles.list = given.indices + row * given.list_length;
        tiles.count = (count < given.list_length ? (count > 0 ? count : 0) : given.list_length) * (given.key_block / tile_keys);
    }
    return tiles;
}

// Begins to copy `rows` rows of a head to shared memory; rows at and after `tokens` become 0.
template <class S, int rows>
__device__ __forceinline__ void copy_rows(unsigned char* to, const void* head, int first_row, int tokens) {
    const auto* const first = static_cast<const typename S::T*>(head) + int64_t{first_row} * S::head_size;
    for (int i = static_cast<int>(threadIdx.x); i < rows * S::pieces; i += threads) {
        const int row = i / S::pieces, piece = i % S::pieces;
        const bool exists = row < tokens - first_row && piece * 8 < S::head_size;
        // Of what does not exist nothing is read, so that the address need not be chosen.
        const auto* const from = first + (row * S::head_size + piece * 8);
        dexport::cp_async_16(to + row * S::stride + piece * 16, from, exists ? 16 : 0);
    }
}

// Where this lane's row of a 16 x 16 operand begins for ldmatrix: matrices in the order (upper, lower) of the left half, then of the right.
template <class S>
__device__ __forceinline__ const unsigned char* upper_then_lower(const unsigned char* tile, int row, int piece) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    return tile + (row + lane % 16) * S::stride + (piece + lane / 16) * 16;
}

// The same in the order (left, right) of the upper half, then of the lower.
template <class S>
__device__ __forceinline__ const unsigned char* left_then_right(const unsigned char* tile, int row, int piece) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    return tile + (row + lane / 16 * 8 + lane % 8) * S::stride + (piece + lane / 8 % 2) * 16;
}

template <class S>
struct Queries {
    uint32_t kept[S::queries_in_registers ? S::inner_steps : 1][4];
    const unsigned char* warp_rows;

    __device__ __forceinline__ void keep() {
        if constexpr (S::queries_in_registers) {
#pragma unroll
            for (int step = 0; step < S::inner_steps; ++step) {
                dexport::ldmatrix_x4(kept[step], upper_then_lower<S>(warp_rows, 0, 2 * step));
            }
        }
    }

    __device__ __forceinline__ void get(uint32_t (&fragment)[4], int row_tile, int step) const {
        if constexpr (S::queries_in_registers) {
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                fragment[r] = kept[step][r];
            }
        } else {
            dexport::ldmatrix_x4(fragment, upper_then_lower<S>(warp_rows, 16 * row_tile, 2 * step));
        }
    }
};

// scores = queries keys^T for the rows of this warp.
template <class S>
__device__ __forceinline__ void multiply_keys(float (&scores)[S::row_tiles][key_tiles][4], const Queries<S>& queries,
                                              const unsigned char* keys) {
#pragma unroll
    for (int step = 0; step < S::inner_steps; ++step) {
        uint32_t a[S::row_tiles][4];
#pragma unroll
        for (int m = 0; m < S::row_tiles; ++m) {
            queries.get(a[m], m, step);
        }
#pragma unroll
        for (int n = 0; n < key_tiles; n += 2) {
            uint32_t b[4];
            dexport::ldmatrix_x4(b, left_then_right<S>(keys, 8 * n, 2 * step));
#pragma unroll
            for (int m = 0; m < S::row_tiles; ++m) {
                dexport::mma_m16n8k16<typename S::T>(scores[m][n], a[m], {b[0], b[1]});
                dexport::mma_m16n8k16<typename S::T>(scores[m][n + 1], a[m], {b[2], b[3]});
            }
        }
    }
}

// Keys that do not exist get -infinity.
template <class S>
__device__ __forceinline__ void mask(float (&scores)[S::row_tiles][key_tiles][4], int visible) {
    const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int n = 0; n < key_tiles; ++n) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
            for (int m = 0; m < S::row_tiles; ++m) {
                scores[m][n][r] = 8 * n + column + r % 2 < visible ? scores[m][n][r] : -INFINITY;
            }
        }
    }
}

// Scores become base-2 logarithms with their bias; keys that do not exist become -infinity.
template <class S>
__device__ __forceinline__ void scale_and_mask(float (&scores)[S::row_tiles][key_tiles][4], float factor, const float* bias, int first_key,
                                               int key_tokens) {
    const int column = static_cast<int>(threadIdx.x) % 4 * 2;
    const int visible = key_tokens - first_key;
#pragma unroll
    for (int n = 0; n < key_tiles; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int key = 8 * n + column + e;
            const bool exists = key < visible;
            const float offset = !exists ? -INFINITY : bias == nullptr ? 0.0F : bias[first_key + key] * log2_e;
#pragma unroll
            for (int m = 0; m < S::row_tiles; ++m) {
                scores[m][n][e] = fmaf(scores[m][n][e], factor, offset);
                scores[m][n][e + 2] = fmaf(scores[m][n][e + 2], factor, offset);
            }
        }
    }
}

// One step of the online softmax: scores, of which `unit` (not below 0) makes base-2 logarithms, become probabilities relative to the
// largest one so far, and what was summed follows.
template <class S>
__device__ __forceinline__ void exponentiate(float (&scores)[S::row_tiles][key_tiles][4], Accumulators<S>& sums, float unit) {
#pragma unroll
    for (int m = 0; m < S::row_tiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float largest = -INFINITY;
#pragma unroll
            for (int n = 0; n < key_tiles; ++n) {
                largest = fmaxf(largest, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
            }
            // The four lanes of a group hold one row.
            largest = fmaxf(largest, dexport::shuffle_xor(largest, 1));
            largest = fmaxf(largest, dexport::shuffle_xor(largest, 2));
            largest = fmaxf(largest * unit, sums.largest[m][half]);
            // A row that has seen no key yet has no largest score: any finite one keeps -inf - -inf away.
            const float base = largest == -INFINITY ? 0.0F : largest;
            const float shrink = dexport::exp2_approximate(sums.largest[m][half] - base);
            float sum = sums.sum[m][half] * shrink;
#pragma unroll
            for (int n = 0; n < key_tiles; ++n) {
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; ++e) {
                    scores[m][n][e] = dexport::exp2_approximate(fmaf(scores[m][n][e], unit, -base));
                    sum += scores[m][n][e];
                }
            }
#pragma unroll
            for (int n = 0; n < S::pieces; ++n) {
                sums.out[m][n][2 * half] *= shrink;
                sums.out[m][n][2 * half + 1] *= shrink;
            }
            sums.sum[m][half] = sum;
            sums.largest[m][half] = largest;
        }
    }
}

// out += probabilities values; accumulators of scores are, two tiles side by side, the left operand of the next product.
template <class S>
__device__ __forceinline__ void multiply_values(Accumulators<S>& sums, const float (&chances)[S::row_tiles][key_tiles][4],
                                                const unsigned char* values) {
    using T = typename S::T;
#pragma unroll
    for (int k = 0; k < key_tiles; k += 2) {
        uint32_t a[S::row_tiles][4];
#pragma unroll
        for (int m = 0; m < S::row_tiles; ++m) {
            a[m][0] = dexport::pack<T>(chances[m][k][0], chances[m][k][1]);
            a[m][1] = dexport::pack<T>(chances[m][k][2], chances[m][k][3]);
            a[m][2] = dexport::pack<T>(chances[m][k + 1][0], chances[m][k + 1][1]);
            a[m][3] = dexport::pack<T>(chances[m][k + 1][2], chances[m][k + 1][3]);
        }
#pragma unroll
        for (int n = 0; n < S::pieces; n += 2) {
            uint32_t b[4];
            dexport::ldmatrix_x4_trans(b, upper_then_lower<S>(values, 8 * k, n));
#pragma unroll
            for (int m = 0; m < S::row_tiles; ++m) {
                dexport::mma_m16n8k16<T>(sums.out[m][n], a[m], {b[0], b[1]});
                dexport::mma_m16n8k16<T>(sums.out[m][n + 1], a[m], {b[2], b[3]});
            }
        }
    }
}

// Divides by the sums and writes the rows that exist; a row that saw no key is 0, its lse -infinity.
template <class S>
__device__ __forceinline__ void write_rows(const DexportBlockSparseAttention& given, const Accumulators<S>& sums, int64_t first_of_head,
                                           int first_row) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int m = 0; m < S::row_tiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = sums.sum[m][half];
            sum += dexport::shuffle_xor(sum, 1);
            sum += dexport::shuffle_xor(sum, 2);
            const int row = first_row + 16 * m + 8 * half + lane / 4;
            if (row >= given.query_tokens) {
                continue;
            }
            const float scale = sum > 0 ? 1 / sum : 0.0F;
            auto* const to = static_cast<typename S::T*>(given.out) + (first_of_head + row) * S::head_size + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < S::head_size / 8; ++n) {
                const uint32_t both = dexport::pack<typename S::T>(sums.out[m][n][2 * half] * scale, sums.out[m][n][2 * half + 1] * scale);
                *reinterpret_cast<uint32_t*>(to + 8 * n) = both;
            }
            if (given.lse != nullptr && lane % 4 == 0) {
                given.lse[first_of_head + row] = sum > 0 ? sums.largest[m][half] * ln_2 + logf(sum) : -INFINITY;
            }
        }
    }
}

// The name carries the dynamic shared memory, so that reports of compilers show it.
template <class S, size_t shared_bytes>
__global__ void __launch_bounds__(threads) attend(const DexportBlockSparseAttention given) {
    using T = typename S::T;
    unsigned char* const shared = dexport::shared_memory();
    unsigned char* const keys = shared + S::rows * S::stride;
    unsigned char* const values = keys + tile_keys * S::stride;
    const int batch = static_cast<int>(blockIdx.z), head = static_cast<int>(blockIdx.y), first_row = static_cast<int>(blockIdx.x) * S::rows;
    const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16 * S::row_tiles;
    const int64_t of_head = int64_t{batch} * given.heads + head;
    // The wide form has no register left to find shared heads with; start_with_rows does not use it then.
    const int64_t of_key_head = S::row_tiles > 1 ? of_head : int64_t{batch} * given.key_heads + head / (given.heads / given.key_heads);
    const auto* const key_head = static_cast<const T*>(given.key) + of_key_head * given.key_tokens * S::head_size;
    const auto* const value_head = static_cast<const T*>(given.value) + of_key_head * given.key_tokens * S::head_size;
    const int64_t bias_row = (given.bias_batch == 1 ? 0 : batch) * int64_t{given.bias_heads} + (given.bias_heads == 1 ? 0 : head);
    const float* const bias = given.key_bias == nullptr ? nullptr : given.key_bias + bias_row * given.key_tokens;
    const KeyTiles tiles = key_tiles_of(given, batch, head, first_row);
    Accumulators<S> sums = {};
#pragma unroll
    for (int m = 0; m < S::row_tiles; ++m) {
        sums.largest[m][0] = sums.largest[m][1] = -INFINITY;
    }
    Queries<S> queries;
    queries.warp_rows = shared + warp_row * S::stride;
    int first_key = 0;
    if (tiles.count > 0) {
        copy_rows<S, S::rows>(shared, static_cast<const T*>(given.query) + of_head * given.query_tokens * S::head_size, first_row,
                              given.query_tokens);
        first_key = tiles.first_key(0);
        copy_rows<S, tile_keys>(keys, key_head, first_key, given.key_tokens);
        dexport::cp_async_commit();
    }
    for (int tile = 0; tile < tiles.count; ++tile) {
        // The list is read one tile ahead of the keys, whose copy must not wait for it.
        const int next_key = tile + 1 < tiles.count ? tiles.first_key(tile + 1) : 0;
        dexport::cp_async_wait<0>();
        dexport::sync_block();  // keys are there, and nobody needs the last tile's values any more
        copy_rows<S, tile_keys>(values, value_head, first_key, given.key_tokens);
        dexport::cp_async_commit();
        if (tile == 0) {
            queries.keep();
        }
        float scores[S::row_tiles][key_tiles][4] = {};
        multiply_keys<S>(scores, queries, keys);
        if constexpr (S::plain) {
            if (first_key + tile_keys > given.key_tokens) {
                mask<S>(scores, given.key_tokens - first_key);
            }
            exponentiate<S>(scores, sums, given.factor * log2_e);
        } else {
            scale_and_mask<S>(scores, given.factor * log2_e, bias, first_key, given.key_tokens);
            exponentiate<S>(scores, sums, 1.0F);
        }
        dexport::cp_async_wait<0>();
        dexport::sync_block();  // values are there, and nobody needs these keys any more
        if (tile + 1 < tiles.count) {
            copy_rows<S, tile_keys>(keys, key_head, next_key, given.key_tokens);
        }
        dexport::cp_async_commit();
        multiply_values<S>(sums, scores, values);
        first_key = next_key;
    }
    write_rows<S>(given, sums, of_head * given.query_tokens, first_row + warp_row);
}

template <class S>
int start(const DexportBlockSparseAttention& given, void* stream) {
    const dim3 grid(static_cast<unsigned>((given.query_tokens + S::rows - 1) / S::rows), static_cast<unsigned>(given.heads),
                    static_cast<unsigned>(given.batch));
    return dexport::launch(attend<S, S::shared_bytes>, grid, threads, S::shared_bytes, stream, given);
}

template <class T, int head_size, bool plain>
int start_with_rows(const DexportBlockSparseAttention& given, void* stream) {
    // Rows of one block of threads have one list.
    const bool wide = given.query_block % 128 == 0 && given.key_heads == given.heads;
    // The largest form has no registers for the branch around the mask.
    constexpr bool wide_and_plain = plain && head_size < 128;
    return wide ? start<Shape<T, head_size, 2, wide_and_plain>>(given, stream) : start<Shape<T, head_size, 1, plain>>(given, stream);
}

template <class T, int head_size>
int start_with_scores(const DexportBlockSparseAttention& given, void* stream) {
    const bool plain = given.key_bias == nullptr && given.factor >= 0;
    return plain ? start_with_rows<T, head_size, true>(given, stream) : start_with_rows<T, head_size, false>(given, stream);
}

template <class T>
int start_with_head(const DexportBlockSparseAttention& given, void* stream) {
    switch (given.head_size) {
        case 64:
            return start_with_scores<T, 64>(given, stream);
        case 72:
            return start_with_scores<T, 72>(given, stream);
        case 96:
            return start_with_scores<T, 96>(given, stream);
        default:
            return start_with_scores<T, 128>(given, stream);
    }
}

bool aligned(const void* pointer) {
    return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

bool broadcasts(int32_t batch, int32_t heads, const DexportBlockSparseAttention& given) {
    return (batch == 1 || batch == given.batch) && (heads == 1 || heads == given.heads);
}

// The code for what is wrong with a request, as launcher.h lists them.
int check(const DexportBlockSparseAttention& given) {
    constexpr int most_tokens = 1 << 30, most_in_grid = 65535;
    if (given.batch < 0 || given.heads < 0 || given.query_tokens < 0 || given.key_tokens < 0 ||
        given.list_length < 0 || given.batch > most_in_grid || given.heads > most_in_grid || given.query_tokens > most_tokens ||
        given.key_tokens > most_tokens) {
        return -5;
    }
    if (given.head_size != 64 && given.head_size != 72 && given.head_size != 96 && given.head_size != 128) {
        return -2;
    }
    if (given.type != DEXPORT_FLOAT16 && given.type != DEXPORT_BFLOAT16) {
        return -3;
    }
    if (given.query_block <= 0 || given.key_block <= 0 || given.query_block % 64 != 0 || given.key_block % tile_keys != 0 ||
        given.key_block > most_tokens || given.query_block > most_tokens) {
        return -4;
    }
    // The kernel counts the tiles of a list in 32 bits.
    if (given.counts != nullptr && int64_t{given.list_length} * (given.key_block / tile_keys) > INT32_MAX) {
        return -5;
    }
    if (!aligned(given.query) || !aligned(given.out) || (given.key_tokens > 0 && (!aligned(given.key) || !aligned(given.value))) ||
        (given.counts == nullptr) != (given.indices == nullptr)) {
        return -1;
    }
    const bool shares = given.heads == 0 || (given.key_heads > 0 && given.heads % given.key_heads == 0);
    const bool lists = given.counts == nullptr || broadcasts(given.list_batch, given.list_heads, given);
    const bool biases = given.key_bias == nullptr || broadcasts(given.bias_batch, given.bias_heads, given);
    return shares && lists && biases ? 0 : -6;
}

}  // namespace

extern "C" int dexport_block_sparse_attention(const DexportBlockSparseAttention* request, void* stream) {
    if (request == nullptr) {
        return -1;
    }
    if (const int wrong = check(*request); wrong != 0) {
        return wrong;
    }
    if (request->batch == 0 || request->heads == 0 || request->query_tokens == 0) {
        return 0;
    }
    return request->type == DEXPORT_FLOAT16 ? start_with_head<Half>(*request, stream) : start_with_head<BFloat16>(*request, stream);
}
