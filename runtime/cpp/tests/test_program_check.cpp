#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "bundle.h"
#include "program_check.h"
#include "sample_bundle.h"

using namespace dexport;

// Every rule is compared with the Python checks in tests/runtime/cpp/test_readers.py.

namespace {

std::string refusal(const std::function<void(Json&)>& edit) {
    const Folder folder;
    const Bundle bundle(write_sample_bundle(folder.path()));
    Json document = sample_program();
    edit(document);
    return refusal_of([&] { check_program(program_from_json(document.dump(), "p.json"), bundle.manifest().components); });
}

}  // namespace

TEST_CASE("a legal program passes") {
    CHECK(refusal([](Json&) {}).empty());
}

TEST_CASE("the instruction that breaks a rule is named") {
    CHECK(refusal([](Json& program) { program["begin"] = Json::array(); }) ==
          "program 'toy', iterations[0][0]: expected 'sample' to be written before it is read, got no earlier instruction does; rebuild "
          "the bundle");
    CHECK(refusal([](Json& program) {
              program["begin"][0]["out"] = "noise";
          }).find("begin[0]: expected one of the buffers eps, image, label, sample, got 'noise'") != std::string::npos);
    CHECK(refusal([](Json& program) {
              program["end"][0]["component"] = "vae";
          }).find("expected one of the components decoder, denoiser, got 'vae'") != std::string::npos);
    CHECK(refusal([](Json& program) {
              program["buffers"]["eps"]["shape"] = {"batch", 2147483647, 2147483647, 2147483647};
          }).find("buffer 'eps': expected at most 8589934592 elements") != std::string::npos);
    CHECK(refusal([](Json& program) {
              program["buffers"]["image"]["dtype"] = "float32";
          }).find("port 'image': expected uint8, got float32") != std::string::npos);
    CHECK(refusal([](Json& program) { program["results"][0] = "sample[0/2]"; }).find("results.0: expected a name of letters") !=
          std::string::npos);
}

TEST_CASE("results that do not join are refused before anything runs") {
    const auto second = [](const Json& shape) {
        return refusal([&](Json& program) {
            program["buffers"]["wide"] = {{"dtype", "uint8"}, {"shape", shape}};
            program["request"].push_back("wide");
            program["results"].push_back("wide");
        });
    };
    CHECK(second({"batch", 7, 4, 4, 3}).empty());
    CHECK(second({"batch", 4, 5, 3}) ==
          "program 'toy': expected results of [rows, height, width, 3] or [rows, frames, height, width, 3], alike but for their frames, got "
          "'image' of uint8, shape [batch, 4, 4, 3] and 'wide' of uint8, shape [batch, 4, 5, 3]; rebuild the bundle");
    CHECK(second({"2*batch", 4, 4, 3}).find("'wide' of uint8, shape [2*batch, 4, 4, 3]") != std::string::npos);
    CHECK(second({"batch", 3}).find("alike but for their frames") != std::string::npos);
    CHECK(refusal([](Json& program) { program["results"] = Json::array(); }) ==
          "program 'toy': expected at least one result, got none; rebuild the bundle");
}

TEST_CASE("parts that were written one by one can be read whole") {
    const auto halves = [](Json& program) {
        program["buffers"]["pair"] = {{"dtype", "float32"}, {"shape", {"2*batch", 4, 4, 3}}};
        program["begin"].push_back({{"op", "noise"}, {"out", "pair[0/2]"}});
        program["begin"].push_back({{"op", "noise"}, {"out", "pair[1/2]"}});
        program["begin"].push_back(Json::parse(R"({"op": "combine", "out": "pair", "terms": [{"buffer": "pair", "scale": 1}]})"));
    };
    CHECK(refusal(halves).empty());
    CHECK(refusal([&](Json& program) {
              halves(program);
              program["begin"].erase(2);
          }).find("expected 'pair' to be written before it is read") != std::string::npos);
}
