// The device primitives that kernels of dexport are written against, and nothing else of CUDA but __global__, __device__, threadIdx,
// blockIdx and pointers. One source then serves three readers:
//
//   nvcc         primitives_ptx.h: inline PTX of sm_80, which every architecture up to sm_121 executes
//   g++, clang   primitives_emulated.h: the same names on a processor, so that the unchanged kernel is executed where there is no GPU
//
// The emulation runs every thread of a block as a fiber, in an order that a seed chooses. It shows:
//   - wrong fragment layouts: mma and ldmatrix distribute registers over lanes as the PTX ISA documents
//   - missing sync_block: one warp runs as far ahead of the others as the barriers let it, another one with each seed
//   - missing cp_async_wait: what is copied arrives at the wait, and until then its destination holds NaN
//   - reading shared memory that was never written: it starts as NaN; writing outside of it: guards around it are checked
//   - lanes of a warp that meet at different collectives, barriers that some threads never reach, misaligned copies and rows
//   - more shared memory than the smallest architecture has
// It cannot show time, registers, bank conflicts, nor races that need two threads to run at once or a weak memory model; and it rounds
// as IEEE 754 does, where tensor cores may truncate sums.
//
// Registers of a fragment hold 32 bits: two elements of 16 bits, four of 8 or eight of 4, the first one in the lowest bits.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#include "primitives_ptx.h"
#else
#include "primitives_emulated.h"
#endif
