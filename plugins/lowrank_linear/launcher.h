/* The C interface of the lowrank_linear kernels; reference.py says what they compute, packing.py how weights lie in memory.
 *
 * All pointers are to memory of the device and aligned to 16 bytes, tensors are contiguous; "16 bits" is `type`. Thread-safe; returns as
 * soon as the kernels are queued. */
#ifndef DEXPORT_LOWRANK_LINEAR_H
#define DEXPORT_LOWRANK_LINEAR_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct DexportLowrankLinear {
    const void* x;                /* [rows, inputs], 16 bits */
    const void* weight;           /* [outputs, inputs / 2], two codes in a byte */
    const void* weight_scale;     /* [weight_scales, outputs], 16 bits */
    const void* down;             /* [rank, inputs], 16 bits; NULL if rank is 0 */
    const void* up;               /* [outputs, rank], 16 bits; NULL if rank is 0 */
    const void* bias;             /* [outputs], 16 bits; NULL: 0 */
    const void* gate;             /* [rows / rows_of_gate, outputs], 16 bits; NULL: none */
    const void* residual;         /* [rows, outputs], 16 bits; NULL without a gate; may be y */
    const void* activation_scale; /* [activation_scales], 16 bits; NULL: dynamic */
    void* y;                      /* [rows, outputs], 16 bits */
    void* workspace;              /* as many bytes as dexport_lowrank_linear_workspace says */
    int32_t type;                 /* of everything in 16 bits: 0 float16, 1 bfloat16 */
    int32_t activation_bits;      /* 4 or 8 */
    int32_t activation_block;     /* 0: a scale for each row; 64: one for each row and 64 inputs */
    int32_t weight_scales;        /* of an output: 1, or inputs / 64 for one of each 64 inputs */
    int32_t activation_scales;    /* 0: dynamic; else 1, or inputs / 64 if activation_block is 64 */
    int32_t rows;                 /* 0 does nothing */
    int32_t inputs;               /* a multiple of 64 */
    int32_t outputs;              /* a multiple of 8 */
    int32_t rank;                 /* a multiple of 16 up to 128, or 0: no branch */
    int32_t gelu;                 /* 0 or 1 */
    int32_t rows_of_gate;         /* rows that share a row of `gate`; divides `rows`; without a gate it means nothing */
    int32_t product;              /* 0: int4 on tensor cores where they have it, 1: always int8; the results are the same */
} DexportLowrankLinear;

/* Queues the two kernels on a cudaStream_t. 0; an error of CUDA (positive); or, with nothing queued,
 * -1 a pointer that is needed is NULL, or one is misaligned, or gate and residual are not both there, -2 a size that the kernels do not
 * have, -3 a type or a number of bits, -4 a block or a number of scales, -5 a size below 0 or too large, -6 a gate whose rows do not
 * divide `rows`. */
int dexport_lowrank_linear(const DexportLowrankLinear* request, void* stream);

/* How many bytes of workspace a request needs: codes, their scales and x D^T in this order, each aligned to 256 bytes. Reads numbers only.
 * The codes of errors are those above. */
int dexport_lowrank_linear_workspace(const DexportLowrankLinear* request, int64_t* bytes);

#ifdef __cplusplus
}
#endif

#endif
