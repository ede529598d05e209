#include <doctest/doctest.h>

#include "backends/weight_streaming.h"

using namespace dexport;

TEST_CASE("weights stay on the device as far as activations and a reserve leave room") {
    constexpr std::int64_t gibibyte = std::int64_t{1} << 30, reserve = gibibyte / 4;
    CHECK(resident_weights(6 * gibibyte, 16 * gibibyte, 2 * gibibyte) == 6 * gibibyte);
    CHECK(resident_weights(6 * gibibyte, 8 * gibibyte + reserve, 2 * gibibyte) == 6 * gibibyte);
    CHECK(resident_weights(12 * gibibyte, 8 * gibibyte, 2 * gibibyte) == 6 * gibibyte - reserve);
    CHECK(resident_weights(12 * gibibyte, gibibyte, 2 * gibibyte) == 0);
}
