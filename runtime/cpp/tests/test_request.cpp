#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "bundle.h"
#include "request.h"
#include "sample_bundle.h"

using namespace dexport;

namespace {

/// A manifest with one prompt, ids and mask, and a guided program that takes both and a parameter.
struct Prompted {
    Manifest manifest;
    Program program;

    Prompted() {
        manifest.texts.push_back({"clip", "tokenizer.json", 4, "ids", "mask"});
        manifest.requests = {{"scale", "parameter", "guidance_scale", 0}, {"given", "given", std::nullopt, 0}};
        program.buffers["ids"] = {Dtype::int64, {2, true}, {4}};
        program.buffers["mask"] = {Dtype::int32, {2, true}, {4}};
        program.buffers["scale"] = {Dtype::float16, {2, true}, {}};
        program.buffers["given"] = {Dtype::boolean, {2, true}, {}};
        program.request = {"ids", "mask", "scale", "given"};
    }

    [[nodiscard]] std::map<std::string, OwnedTensor> fill(const Asked& asked, std::int64_t batch = 1) const {
        return request_buffers(manifest, program, true, asked, batch, [](const TextEntry&, const std::vector<std::string>& prompts) {
            text::Tokens tokens;
            tokens.length = 4;
            for (const std::string& prompt : prompts) {
                tokens.ids.insert(tokens.ids.end(), 4, static_cast<std::int64_t>(prompt.size()));
                tokens.mask.insert(tokens.mask.end(), 4, 1);
            }
            return tokens;
        });
    }
};

Asked asked_for(const std::vector<std::string>& prompts) {
    return {prompts, std::nullopt, std::nullopt, {{"guidance_scale", 2.5}}, {}};
}

template <typename Number>
std::vector<Number> numbers(const OwnedTensor& owned) {
    const auto* data = reinterpret_cast<const Number*>(owned.tensor.data);
    return {data, data + owned.tensor.elements()};
}

}  // namespace

TEST_CASE("unconditional rows come first") {
    const auto buffers = Prompted().fill(asked_for({"abc", "de"}), 2);
    CHECK(numbers<std::int64_t>(buffers.at("ids")) == std::vector<std::int64_t>{0, 0, 0, 0, 0, 0, 0, 0, 3, 3, 3, 3, 2, 2, 2, 2});
    CHECK(numbers<std::int32_t>(buffers.at("mask")) == std::vector<std::int32_t>(16, 1));
    CHECK(numbers<std::uint16_t>(buffers.at("scale")) == std::vector<std::uint16_t>(4, 0x4100));
    CHECK(numbers<std::uint8_t>(buffers.at("given")) == std::vector<std::uint8_t>{0, 0, 1, 1});
}

TEST_CASE("buffers that the caller filled take the place of prompts") {
    std::vector<std::int64_t> ids = {1, 2, 3, 4, 5, 6, 7, 8};
    std::vector<std::int32_t> mask(8, 1);
    Asked asked = {std::nullopt, std::nullopt, std::nullopt, {{"guidance_scale", 2.5}}, {}};
    asked.buffers["ids"] = {Dtype::int64, {2, 4}, reinterpret_cast<std::byte*>(ids.data())};
    asked.buffers["mask"] = {Dtype::int32, {2, 4}, reinterpret_cast<std::byte*>(mask.data())};
    CHECK(numbers<std::int64_t>(Prompted().fill(asked).at("ids")) == ids);
    asked.buffers["mask"].dtype = Dtype::uint32;
    CHECK(refusal_of([&] { static_cast<void>(Prompted().fill(asked)); }) ==
          "request 'mask': expected int32 [2, 4], got uint32 [2, 4]; give an array of that dtype and shape");
    asked.buffers["masks"] = asked.buffers["mask"];
    CHECK(refusal_of([&] { static_cast<void>(Prompted().fill(asked)); }) ==
          "buffers: expected one of the inputs given, ids, mask, scale, got 'masks'; leave it out");
}

TEST_CASE("what is computed of a prompt or a label takes its place") {
    std::vector<std::uint16_t> scale(2);
    Prompted prompted;
    Asked asked = {std::nullopt, std::nullopt, std::nullopt, {}, {}};
    asked.buffers["scale"] = {Dtype::float16, {2}, reinterpret_cast<std::byte*>(scale.data())};
    CHECK(refusal_of([&] { static_cast<void>(prompted.fill(asked)); }) ==
          "prompt: expected a text, or the buffers ids, mask too, got neither; give one of them");
    prompted.program.request = {"scale"};  // as `with_given` leaves it
    prompted.manifest.requests.push_back({"label", "class", std::nullopt, 0});
    CHECK(prompted.fill(asked).size() == 1);
    asked.prompts = {"a"};
    CHECK(refusal_of([&] { static_cast<void>(prompted.fill(asked)); }) ==
          "prompt: expected none, as buffers take its place, got a text; leave one of them out");
}

TEST_CASE("conditions that a model does not take are refused") {
    const Prompted prompted;
    CHECK(refusal_of([&] { static_cast<void>(prompted.fill({std::nullopt, std::nullopt, std::nullopt, {}, {}})); }) ==
          "prompt: expected a text, got none; give --prompt");
    Asked both = asked_for({"a"});
    both.class_labels = {3};
    CHECK(refusal_of([&] { static_cast<void>(prompted.fill(both)); }).find("class label: expected none, as this model takes prompts") !=
          std::string::npos);
    const Folder folder;
    const Bundle labelled(write_sample_bundle(folder.path()));
    const Program program = program_from_json(sample_program().dump(), "p.json");
    const auto refusal = [&](const Asked& asked) {
        return refusal_of([&] { static_cast<void>(request_buffers(labelled.manifest(), program, false, asked, 1, {})); });
    };
    CHECK(refusal(asked_for({"a"})).find("prompt: expected none, as this model takes class labels") != std::string::npos);
    CHECK(refusal({}) == "class label: expected a number, got none; give --class-label");
}
