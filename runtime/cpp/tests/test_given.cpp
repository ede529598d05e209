#include <doctest/doctest.h>

#include "error.h"
#include "given.h"
#include "sample_bundle.h"

using namespace dexport;

namespace {

Named<std::vector<Ref>> ports(const std::vector<std::string>& names) {
    Named<std::vector<Ref>> result;
    for (const std::string& name : names) {
        result.emplace_back(name, std::vector<Ref>{{name}});
    }
    return result;
}

Run run(const std::string& component, const std::vector<std::string>& inputs, const std::vector<std::string>& outputs) {
    return {component, ports(inputs), ports(outputs)};
}

/// Two text encoders and a prelude before the loop, as in tests/runtime/test_given.py.
Program sample() {
    Program program;
    program.request = {"ids", "ids_2", "mask"};
    program.results = {"image"};
    program.begin = {run("encoder", {"ids"}, {"hidden"}), run("encoder_2", {"ids_2"}, {"pooled"}),
                     run("prelude", {"hidden", "mask"}, {"embeds"}), Draw{{"sample"}}};
    program.iterations = {{run("denoiser", {"sample", "embeds", "pooled"}, {"sample"})}};
    program.end = {run("decoder", {"sample"}, {"image"})};
    return program;
}

Tensors tensors(const std::vector<std::string>& names) {
    Tensors result;
    for (const std::string& name : names) {
        result[name] = {};
    }
    return result;
}

std::vector<std::string> components(const Program& program) {
    std::vector<std::string> names;
    for (const Instruction& instruction : program.begin) {
        if (const auto* each = std::get_if<Run>(&instruction)) {
            names.push_back(each->component);
        }
    }
    return names;
}

using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("what is given is not computed, and neither is what only that needs") {
    const Program given = with_given(sample(), tensors({"embeds"}));
    CHECK(given.request == Names{"ids_2", "embeds"});
    CHECK(components(given) == Names{"encoder_2"});
    CHECK(std::holds_alternative<Draw>(given.begin.back()));
    CHECK(components(with_given(sample(), tensors({"hidden"}))) == Names{"encoder_2", "prelude"});
    CHECK(with_given(sample(), tensors({"hidden"})).request == Names{"ids_2", "mask", "hidden"});
    CHECK(components(with_given(sample(), tensors({"embeds", "pooled"}))).empty());
    CHECK(with_given(sample(), tensors({"ids", "mask"})).request == sample().request);
}

TEST_CASE("a call that computes more is left out only as a whole") {
    Program program = sample();
    program.begin = {run("encoder", {"ids", "ids_2"}, {"hidden", "pooled"}), program.begin[2], program.begin[3]};
    CHECK(with_given(program, tensors({"hidden", "pooled"})).request == Names{"mask", "hidden", "pooled"});
    CHECK(refusal_of([&] { static_cast<void>(with_given(program, tensors({"hidden"}))); }) ==
          "buffers: expected pooled too, made with hidden, got none; give all of them");
}

TEST_CASE("what is drawn, written later or unknown cannot be given") {
    for (const std::string name : {"sample", "image", "other"}) {
        CHECK(refusal_of([&] { static_cast<void>(with_given(sample(), tensors({name}))); }) ==
              "buffers: expected one of the inputs ids, ids_2, mask, or of what is made of them, embeds, hidden, pooled, got '" + name +
                  "'; leave it out");
    }
}
