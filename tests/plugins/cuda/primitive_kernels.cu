// One small kernel for every device primitive, and some that are wrong in the ways that the emulation has to find.
#include "primitives.h"

namespace {

using dexport::BFloat16;
using dexport::Half;

struct Arguments {
    const uint32_t* a;
    const uint32_t* b;
    void* out;
    int number;
};

// Fragments are given and taken register by register: lane after lane.
template <class Sum, int which>
__global__ void multiply(const Arguments given) {
    const int lane = static_cast<int>(threadIdx.x);
    uint32_t a[4], b[2];
    Sum sums[4];
    for (int r = 0; r < 4; ++r) {
        a[r] = given.a[4 * lane + r];
        sums[r] = static_cast<Sum*>(given.out)[4 * lane + r];
    }
    for (int r = 0; r < 2; ++r) {
        b[r] = given.b[2 * lane + r];
    }
    if constexpr (which == 0) {
        dexport::mma_m16n8k16<Half>(sums, a, b);
    } else if constexpr (which == 1) {
        dexport::mma_m16n8k16<BFloat16>(sums, a, b);
    } else if constexpr (which == 2) {
        dexport::mma_m16n8k32_s8(sums, a, b);
    } else {
        dexport::mma_m16n8k64_s4(sums, a, b);
    }
    for (int r = 0; r < 4; ++r) {
        static_cast<Sum*>(given.out)[4 * lane + r] = sums[r];
    }
}

// Four matrices of 8 x 8 numbers of 16 bits, one below the other, by way of shared memory.
template <bool transposed>
__global__ void load(const Arguments given) {
    const int lane = static_cast<int>(threadIdx.x);
    unsigned char* const shared = dexport::shared_memory();
    dexport::cp_async_16(shared + 16 * lane, given.a + 4 * lane, 16);
    dexport::cp_async_commit();
    dexport::cp_async_wait<0>();
    dexport::sync_block();
    uint32_t r[4];
    if constexpr (transposed) {
        dexport::ldmatrix_x4_trans(r, shared + 16 * lane);
    } else {
        dexport::ldmatrix_x4(r, shared + 16 * lane);
    }
    for (int i = 0; i < 4; ++i) {
        static_cast<uint32_t*>(given.out)[4 * lane + i] = r[i];
    }
}

// Of every lane's 16 bytes, `number` are copied and the rest becomes 0.
__global__ void copy(const Arguments given) {
    const int lane = static_cast<int>(threadIdx.x);
    auto* const shared = reinterpret_cast<uint32_t*>(dexport::shared_memory());
    dexport::cp_async_16(shared + 4 * lane, given.a + 4 * lane, given.number);
    dexport::cp_async_commit();
    dexport::cp_async_wait<0>();
    for (int i = 0; i < 4; ++i) {
        static_cast<uint32_t*>(given.out)[4 * lane + i] = shared[4 * lane + i];
    }
}

// Two numbers to 16 bits and back, the sum over lanes by butterflies, and powers of two.
template <class T>
__global__ void convert(const Arguments given) {
    const int lane = static_cast<int>(blockIdx.x * 32 + threadIdx.x);
    const auto* const in = reinterpret_cast<const float*>(given.a);
    auto* const out = static_cast<float*>(given.out);
    const uint32_t both = dexport::pack<T>(in[2 * lane], in[2 * lane + 1]);
    out[4 * lane] = dexport::widen(T{static_cast<uint16_t>(both)});
    out[4 * lane + 1] = dexport::widen(T{static_cast<uint16_t>(both >> 16)});
    out[4 * lane + 2] = dexport::exp2_approximate(in[2 * lane]);
    float sum = static_cast<float>(lane);
    for (int mask = 16; mask > 0; mask /= 2) {
        sum += dexport::shuffle_xor(sum, mask);
    }
    out[4 * lane + 3] = sum;
}

constexpr int passing = 96;

// Every thread reads what its neighbour in the next warp wrote. Mistakes: 1 no barrier, 2 a barrier that some do not reach, 3 no wait, 4
// writes too far, 5 lanes at different collectives, 6 an address that is not aligned, 7 reads what nobody wrote.
__global__ void pass_on(const Arguments given) {
    const int thread = static_cast<int>(threadIdx.x);
    auto* const shared = reinterpret_cast<float*>(dexport::shared_memory());
    const int mistake = given.number;
    dexport::cp_async_16(shared + 4 * thread + (mistake == 6 ? 1 : 0), given.a + 4 * thread, 16);
    dexport::cp_async_commit();
    if (mistake != 3) {
        dexport::cp_async_wait<0>();
    }
    if (mistake == 4) {
        shared[4 * passing + thread] = 0;
    }
    if (mistake == 5) {
        uint32_t r[4];
        thread % 2 == 0 ? dexport::ldmatrix_x4(r, dexport::shared_memory()) : static_cast<void>(dexport::shuffle_xor(1, 1));
    }
    if (mistake != 1 && (mistake != 2 || thread < 32)) {
        dexport::sync_block();
    }
    const int other = mistake == 7 ? passing : (thread + 32) % passing;
    static_cast<float*>(given.out)[thread] = shared[4 * other];
    dexport::cp_async_wait<0>();
}

template <class Kernel>
int start(Kernel kernel, unsigned blocks, int threads, size_t shared_bytes, const void* a, const void* b, void* out, int number) {
    const Arguments given{static_cast<const uint32_t*>(a), static_cast<const uint32_t*>(b), out, number};
    return dexport::launch(kernel, dim3(blocks), threads, shared_bytes, nullptr, given);
}

}  // namespace

extern "C" {
int multiply_f16(const void* a, const void* b, void* out) {
    return start(multiply<float, 0>, 1, 32, 0, a, b, out, 0);
}
int multiply_bf16(const void* a, const void* b, void* out) {
    return start(multiply<float, 1>, 1, 32, 0, a, b, out, 0);
}
int multiply_s8(const void* a, const void* b, void* out) {
    return start(multiply<int32_t, 2>, 1, 32, 0, a, b, out, 0);
}
int multiply_s4(const void* a, const void* b, void* out) {
    return start(multiply<int32_t, 3>, 1, 32, 0, a, b, out, 0);
}
int load_x4(const void* a, void* out) {
    return start(load<false>, 1, 32, 512, a, nullptr, out, 0);
}
int load_x4_trans(const void* a, void* out) {
    return start(load<true>, 1, 32, 512, a, nullptr, out, 0);
}
int copy_bytes(const void* a, void* out, int bytes) {
    return start(copy, 1, 32, 512, a, nullptr, out, bytes);
}
int convert_f16(const void* a, void* out, int blocks) {
    return start(convert<Half>, static_cast<unsigned>(blocks), 32, 0, a, nullptr, out, 0);
}
int convert_bf16(const void* a, void* out, int blocks) {
    return start(convert<BFloat16>, static_cast<unsigned>(blocks), 32, 0, a, nullptr, out, 0);
}
// Threads with 16 bytes each.
int pass_values_on(const void* a, void* out, int mistake) {
    return start(pass_on, 1, passing, 16 * passing, a, nullptr, out, mistake);
}
int take_memory(const void* a, void* out, int bytes) {
    return start(pass_on, 1, passing, static_cast<size_t>(bytes), a, nullptr, out, 0);
}
}
