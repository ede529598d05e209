#include <doctest/doctest.h>

#include "backends/device_memory.h"
#include "fake_cuda.h"
#include "sample_bundle.h"

using namespace dexport;

TEST_CASE("device memory grows to the largest, stays while it is enough, and goes with its object") {
    const FakeCuda& cuda = fake_cuda();
    {
        DeviceMemory memory(fake_device());
        CHECK(memory.address() == 0);
        memory.reserve(100, "toy", "activations");
        const std::uint64_t address = memory.address();
        memory.reserve(60, "toy", "activations");
        CHECK(memory.address() == address);
        CHECK(memory.bytes() == 100);
        memory.reserve(200, "toy", "activations");
        CHECK(cuda.used == 200);
        const DeviceMemory moved(std::move(memory));
        CHECK(moved.bytes() == 200);
        CHECK(cuda.allocations == 1);
    }
    CHECK(cuda.allocations == 0);
}

TEST_CASE("too little memory is told with what is needed and what is free") {
    FakeCuda& cuda = fake_cuda();
    cuda.total = 8 << 20;
    DeviceMemory memory(fake_device());
    memory.reserve(5 << 20, "toy", "activations");
    CHECK(refusal_of([&] { memory.reserve(std::size_t{3} << 30, "toy", "activations"); }) ==
          "toy: expected 3.0 GiB of GPU memory for activations, got 8 MiB free; close other programs, release components (--release), or "
          "build a smaller bundle");
    memory.reserve(1 << 20, "toy", "activations");
    CHECK(cuda.used == 1 << 20);
}
