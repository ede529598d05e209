#include <doctest/doctest.h>

#include <stdexcept>

#include "tensor.h"

using namespace dexport;

TEST_CASE("types have numpy's names and sizes") {
    CHECK(std::string(name_of(Dtype::boolean)) == "bool");
    CHECK(dtype_named("float16") == Dtype::float16);
    CHECK(bytes_of(Dtype::int64) == 8);
    CHECK_THROWS_AS(static_cast<void>(dtype_named("float128")), std::out_of_range);
}

TEST_CASE("texts of shapes") {
    CHECK(kind_text(Dtype::float32, {1, 2}) == "float32 [1, 2]");
    CHECK(shape_text({}) == "[]");
    CHECK(Tensor{Dtype::float32, {2, 3}, nullptr}.bytes() == 24);
}
