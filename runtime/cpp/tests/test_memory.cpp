#include <doctest/doctest.h>

#include <cstdint>

#include "memory.h"

using namespace dexport;

TEST_CASE("memory is zeroed and aligned, and counts") {
    const Memory memory(1000);
    CHECK(reinterpret_cast<std::uintptr_t>(memory.data()) % 64 == 0);
    CHECK(static_cast<int>(memory.data()[999]) == 0);
    CHECK(Memory().data() == nullptr);
    CHECK(peak_memory_bytes() > 1 << 20);
}
