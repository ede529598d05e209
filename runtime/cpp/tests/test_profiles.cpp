#include <doctest/doctest.h>

#include "backends/profiles.h"
#include "sample_bundle.h"

using namespace dexport;

namespace {

const std::vector<Profile> profiles = {
    {{"x", {{1, 4, 64, 64}, {8, 4, 128, 128}}}, {"t", {{1}, {8}}}},
    {{"x", {{1, 4, 64, 64}, {2, 4, 64, 64}}}, {"t", {{1}, {2}}}},
};

std::vector<Binding> inputs(std::int64_t batch, std::int64_t size) {
    return {{"t", {Dtype::float32, {batch}, nullptr}}, {"x", {Dtype::float32, {batch, 4, size, size}, nullptr}}};
}

}  // namespace

TEST_CASE("of the profiles that allow the shapes the narrowest is taken") {
    CHECK(profile_for("toy", profiles, inputs(1, 64)) == 1);
    CHECK(profile_for("toy", profiles, inputs(2, 64)) == 1);
    CHECK(profile_for("toy", profiles, inputs(3, 64)) == 0);
    CHECK(profile_for("toy", profiles, inputs(1, 128)) == 0);
}

TEST_CASE("shapes that no profile allows are refused with those that are") {
    CHECK(refusal_of([] { static_cast<void>(profile_for("toy", profiles, inputs(9, 64))); }) ==
          "toy: expected t [1] to [8], x [1, 4, 64, 64] to [8, 4, 128, 128] or t [1] to [2], x [1, 4, 64, 64] to [2, 4, 64, 64], got "
          "t [9], x [9, 4, 64, 64]; rebuild the bundle with this size and batch");
    const std::vector<Binding> other_rank = {{"t", {Dtype::float32, {1}, nullptr}}, {"x", {Dtype::float32, {1, 4}, nullptr}}};
    CHECK(refusal_of([&] { static_cast<void>(profile_for("toy", profiles, other_rank)); }).find("got t [1], x [1, 4];") !=
          std::string::npos);
}
