/* The C interface of the block-sparse attention kernel; reference.py says what it computes.
 *
 * All pointers are to memory of the device, tensors are contiguous; query, key, value and out are aligned to 16 bytes. Thread-safe;
 * returns as soon as the kernel is queued. */
#ifndef DEXPORT_BLOCK_SPARSE_ATTENTION_H
#define DEXPORT_BLOCK_SPARSE_ATTENTION_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { DEXPORT_FLOAT16 = 0, DEXPORT_BFLOAT16 = 1 };

typedef struct DexportBlockSparseAttention {
    const void* query;      /* [batch, heads, query_tokens, head_size] */
    const void* key;        /* [batch, key_heads, key_tokens, head_size] */
    const void* value;      /* as key */
    const int32_t* indices; /* [list_batch, list_heads, query blocks, list_length]; NULL with counts: all keys */
    const int32_t* counts;  /* [list_batch, list_heads, query blocks] */
    const int32_t* modes;   /* [heads]: 0 all keys, 1 listed keys, 2 none; NULL: 1 */
    const float* key_bias;  /* [bias_batch, bias_heads, key_tokens]; NULL: 0 */
    void* out;              /* [batch, heads, query_tokens, head_size] */
    float* lse;             /* [batch, heads, query_tokens]; NULL: not wanted */
    float factor;           /* of the scores */
    int16_t type;           /* of query, key, value and out */
    uint16_t key_heads;     /* divides heads; neighbouring heads share keys and values. Beyond 128 bytes of this, kernels spill on sm_90 */
    int32_t batch, heads, query_tokens, key_tokens;
    int32_t head_size;              /* 64, 72, 96 or 128 */
    int32_t query_block, key_block; /* multiples of 64 */
    int32_t list_length;            /* entries that a list has room for */
    int32_t list_batch, list_heads; /* 1, or batch and heads */
    int32_t bias_batch, bias_heads; /* 1, or batch and heads */
} DexportBlockSparseAttention;

/* Queues the kernel on a cudaStream_t. 0; an error of CUDA (positive); or, with nothing queued,
 * -1 a pointer that is needed is NULL or misaligned, -2 a head size, -3 a type, -4 a block size that the kernel does not have,
 * -5 a size below 0 or too large, or lists with room for 2^31 tiles of 64 keys, -6 lists or biases that do not broadcast to batch and
 * heads, or key_heads that do not divide heads. */
int dexport_block_sparse_attention(const DexportBlockSparseAttention* request, void* stream);

#ifdef __cplusplus
}
#endif

#endif
