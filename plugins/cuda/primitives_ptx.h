// Device primitives as inline PTX (ISA 7.0, sm_80); included by primitives.h, which says what they are for.
#pragma once

#include <cuda_runtime.h>

namespace dexport {

// Numbers of 16 bits as they lie in memory; kernels widen them or hand them to mma as they are.
struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

// Two numbers as one register, rounded to nearest even.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack<Half>(float low, float high) {
    uint32_t both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

template <>
__device__ __forceinline__ uint32_t pack<BFloat16>(float low, float high) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

__device__ __forceinline__ float widen(Half x) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
}

__device__ __forceinline__ float widen(BFloat16 x) {
    return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}

// 2^x, to 2 ulp; 0 for -infinity.
__device__ __forceinline__ float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// sums [16, 8] += a [16, 16] b [16, 8]; a row by row, b column by column.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma_m16n8k16<Half>(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void mma_m16n8k16<BFloat16>(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same for signed integers of 8 bits, a [16, 32] and b [32, 8].
__device__ __forceinline__ void mma_m16n8k32_s8(int32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same for signed integers of 4 bits, a [16, 64] and b [64, 8]; from sm_90 on the assembler spells it with two products of 8 bits.
__device__ __forceinline__ void mma_m16n8k64_s4(int32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Matrices of 8 rows of 16 bytes from shared memory: lane 8 i + j gives the address of row j of matrix i, which goes to register i.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Copies 16 bytes to shared memory, both aligned to 16; of the source only `valid_bytes` are read, the rest becomes 0.
__device__ __forceinline__ void cp_async_16(void* to_shared, const void* source, int valid_bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)), "l"(source), "r"(valid_bytes)
                 : "memory");
}

// Closes the group of the copies that this thread has begun since the last group.
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until of this thread's groups at most the `newest` last ones are on their way. Other threads see the copies after sync_block.
template <int newest>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(newest) : "memory");
}

// The value of lane (own lane ^ mask).
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xffffffffU, value, mask);
}

__device__ __forceinline__ void sync_block() {
    __syncthreads();
}

// The block's dynamic shared memory, aligned to 128 bytes.
__device__ __forceinline__ unsigned char* shared_memory() {
    extern __shared__ __align__(128) unsigned char dexport_shared[];
    return dexport_shared;
}

// Starts a kernel with one argument; 0, or the error of CUDA.
template <class Arguments>
int launch(void (*kernel)(Arguments), dim3 grid, int threads, size_t shared_bytes, void* stream, const Arguments& arguments) {
    // Above 48 KiB a kernel has to ask.
    const cudaError_t asked = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (asked != cudaSuccess) {
        return asked;
    }
    Arguments copy = arguments;
    void* given[] = {&copy};
    const dim3 block(static_cast<unsigned>(threads));
    return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, given, shared_bytes, static_cast<cudaStream_t>(stream));
}

}  // namespace dexport
