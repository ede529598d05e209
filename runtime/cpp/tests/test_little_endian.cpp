#include <doctest/doctest.h>

#include "little_endian.h"

using namespace dexport;

TEST_CASE("the lowest byte comes first") {
    CHECK(little_endian("") == 0);
    CHECK(little_endian("\x01\x02") == 0x0201);
    CHECK(little_endian("\xff\xff\xff\xff\xff\xff\xff\xff") == ~std::uint64_t{0});
}
