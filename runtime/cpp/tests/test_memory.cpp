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

TEST_CASE("an owned tensor is made of zeros") {
    const OwnedTensor owned = owned_tensor(Dtype::int16, {2, 3});
    CHECK(owned.tensor.bytes() == 12);
    CHECK(owned.tensor.data == owned.memory.data());
    CHECK(static_cast<int>(owned.tensor.data[11]) == 0);
}
