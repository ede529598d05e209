// Blocks of threads on a processor: every thread is a fiber, and one of them runs at a time. primitives.h says what this can show.
//
// A seed other than 0 shuffles blocks, warps and lanes. Of the threads that can run, the first in that order always does, so that a warp
// gets as far ahead of the others as barriers allow; barriers of the block shuffle again.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

// The words of CUDA that kernels use.
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline dim3 threadIdx, blockIdx;

namespace dexport::emulation {

constexpr int warp_size = 32;
constexpr size_t stack_bytes = size_t{256} << 10;
// Of sm_86, sm_89 and sm_120, which have the least.
constexpr size_t most_shared_bytes = size_t{99} << 10;
constexpr size_t guard_bytes = 1024;
// NaN in 16 and in 32 bits.
constexpr unsigned char unwritten = 0xff;
// cudaErrorInvalidValue and cudaErrorLaunchFailure.
constexpr int invalid_value = 1, launch_failure = 719;

inline std::string error;
inline unsigned seed = 0;

// Threads that wait for each other; the last one to come does for all of them what they came for.
struct Meeting {
    const char* purpose = "";
    int arrived = 0;
    void* given[warp_size] = {};
};

struct Copy {
    unsigned char* to;
    const unsigned char* from;
    int valid_bytes;
};

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(stack_bytes);
    const Meeting* waits_for = nullptr;
    bool done = false;
    // Groups of copies on their way, oldest first; the last one is open.
    std::vector<std::vector<Copy>> copies{1};
};

class Block {
public:
    Block(int threads, size_t shared_bytes)
        : fibers_(static_cast<size_t>(threads)),
          warps_(static_cast<size_t>((threads + warp_size - 1) / warp_size)),
          shared_(shared_bytes + 2 * guard_bytes + 128),
          shared_bytes_(shared_bytes) {}

    // Runs all threads to their end; false with `error` set where one does what a GPU would not forgive.
    bool run(const std::function<void()>& thread, std::mt19937& random) {
        thread_ = &thread;
        random_ = &random;
        protect(false);
        std::fill(shared_.begin(), shared_.end(), unwritten);
        protect(true);
        shuffle();
        for (Fiber& fiber : fibers_) {
            fiber.done = false;
            fiber.waits_for = nullptr;
            fiber.copies.assign(1, {});
            getcontext(&fiber.context);
            fiber.context.uc_stack = {fiber.stack.data(), 0, fiber.stack.size()};
            fiber.context.uc_link = &scheduler_;
            makecontext(&fiber.context, &Block::enter, 0);
        }
        running = this;
        while (error.empty() && resume_next()) {
        }
        running = nullptr;
        protect(false);
        return error.empty() && all_done() && guards_are_whole();
    }

    static inline Block* running = nullptr;

    Fiber& fiber() { return fibers_[static_cast<size_t>(current_)]; }
    int lane() const { return current_ % warp_size; }
    Meeting& warp() { return warps_[static_cast<size_t>(current_ / warp_size)]; }
    unsigned char* shared() {
        return shared_.data() + guard_bytes + (128 - reinterpret_cast<uintptr_t>(shared_.data() + guard_bytes) % 128) % 128;
    }
    bool holds(const void* pointer, size_t bytes) {
        const auto at = reinterpret_cast<uintptr_t>(pointer), first = reinterpret_cast<uintptr_t>(shared());
        return at >= first && at + bytes <= first + shared_bytes_;
    }

    // Meets the other lanes of the warp; `perform` gets what all of them gave.
    void meet_warp(const char* purpose, void* given, void (*perform)(void* const* lanes)) {
        Meeting& meeting = warp();
        meeting.given[lane()] = given;
        const int size = std::min(warp_size, static_cast<int>(fibers_.size()) - current_ / warp_size * warp_size);
        if (size < warp_size) {
            fail("a collective of a warp in a block whose threads are no multiple of 32");
        }
        meet(meeting, size, purpose, [&] { perform(meeting.given); });
    }

    void meet_block() {
        meet(block_, static_cast<int>(fibers_.size()), "sync_block", [this] { shuffle(); });
    }

    // Ends the kernel; does not return.
    void fail(const std::string& what) {
        error = what + " (thread " + std::to_string(current_) + ")";
        swapcontext(&fiber().context, &scheduler_);
    }

private:
    template <class Perform>
    void meet(Meeting& meeting, int size, const char* purpose, Perform perform) {
        if (meeting.arrived != 0 && std::strcmp(meeting.purpose, purpose) != 0) {
            fail(std::string("threads that meet are at ") + meeting.purpose + " and at " + purpose);
        }
        meeting.purpose = purpose;
        if (++meeting.arrived < size) {
            fiber().waits_for = &meeting;
        } else {
            meeting.arrived = 0;
            perform();
            for (Fiber& other : fibers_) {
                other.waits_for = other.waits_for == &meeting ? nullptr : other.waits_for;
            }
        }
        swapcontext(&fiber().context, &scheduler_);
    }

    static void enter() {
        Block& block = *running;
        (*block.thread_)();
        for (const std::vector<Copy>& group : block.fiber().copies) {
            if (!group.empty()) {
                block.fail("a thread ends with copies on their way");
            }
        }
        block.fiber().done = true;
    }

    bool resume_next() {
        for (const int thread : order_) {
            Fiber& next = fibers_[static_cast<size_t>(thread)];
            if (!next.done && next.waits_for == nullptr) {
                current_ = thread;
                threadIdx = dim3(static_cast<unsigned>(thread), 0, 0);
                swapcontext(&scheduler_, &next.context);
                return true;
            }
        }
        return false;
    }

    bool all_done() {
        for (const Fiber& one : fibers_) {
            if (!one.done) {
                error = std::string("a thread waits for ever at ") + one.waits_for->purpose;
                return false;
            }
        }
        return true;
    }

    void shuffle() {
        order_.resize(fibers_.size());
        std::vector<int> warps(warps_.size());
        for (size_t warp = 0; warp < warps.size(); ++warp) {
            warps[warp] = static_cast<int>(warp);
        }
        if (seed != 0) {
            std::shuffle(warps.begin(), warps.end(), *random_);
        }
        auto next = order_.begin();
        for (const int warp : warps) {
            const auto first = next;
            for (int thread = warp * warp_size; thread < std::min<int>((warp + 1) * warp_size, static_cast<int>(fibers_.size()));
                 ++thread) {
                *next++ = thread;
            }
            if (seed != 0) {
                std::shuffle(first, next, *random_);
            }
        }
    }

    void protect([[maybe_unused]] bool guards) {
#ifdef __SANITIZE_ADDRESS__
        ASAN_UNPOISON_MEMORY_REGION(shared_.data(), shared_.size());
        if (guards) {
            ASAN_POISON_MEMORY_REGION(shared() - guard_bytes, guard_bytes);
            ASAN_POISON_MEMORY_REGION(shared() + shared_bytes_, guard_bytes);
        }
#endif
    }

    bool guards_are_whole() {
        const auto broken = [](unsigned char byte) { return byte != unwritten; };
        const unsigned char* const first = shared();
        if (std::any_of(first - guard_bytes, first, broken) ||
            std::any_of(first + shared_bytes_, first + shared_bytes_ + guard_bytes, broken)) {
            error = "a thread wrote outside of shared memory";
            return false;
        }
        return true;
    }

    std::vector<Fiber> fibers_;
    std::vector<Meeting> warps_;
    Meeting block_;
    std::vector<unsigned char> shared_;
    size_t shared_bytes_;
    std::vector<int> order_;
    int current_ = 0;
    ucontext_t scheduler_;
    const std::function<void()>* thread_ = nullptr;
    std::mt19937* random_ = nullptr;
};

}  // namespace dexport::emulation

// What a test asks of a library of emulated kernels.
extern "C" {
__attribute__((used, visibility("default"))) inline const char* dexport_emulation_error() {
    return dexport::emulation::error.c_str();
}
__attribute__((used, visibility("default"))) inline void dexport_emulation_seed(unsigned seed) {
    dexport::emulation::seed = seed;
}
}

namespace dexport {

// Starts a kernel with one argument and waits for its end; 0, or what CUDA would call the error, with its text in `emulation::error`.
template <class Arguments>
int launch(void (*kernel)(Arguments), dim3 grid, int threads, size_t shared_bytes, void* /*stream*/, const Arguments& arguments) {
    emulation::error.clear();
    if (shared_bytes > emulation::most_shared_bytes || threads < 1 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
        grid.y > 65535 || grid.z > 65535) {
        emulation::error = "no GPU starts a kernel of this size";
        return emulation::invalid_value;
    }
    std::mt19937 random(emulation::seed);
    std::vector<unsigned> blocks(size_t{grid.x} * grid.y * grid.z);
    for (unsigned i = 0; i < blocks.size(); ++i) {
        blocks[i] = i;
    }
    if (emulation::seed != 0) {
        std::shuffle(blocks.begin(), blocks.end(), random);
    }
    emulation::Block block(threads, shared_bytes);
    const std::function<void()> thread = [&] { kernel(arguments); };
    for (const unsigned index : blocks) {
        blockIdx = dim3(index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y);
        if (!block.run(thread, random)) {
            return emulation::launch_failure;
        }
    }
    return 0;
}

}  // namespace dexport
