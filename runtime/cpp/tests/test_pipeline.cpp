#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "noise.h"
#include "pipeline.h"
#include "sample_bundle.h"

using namespace dexport;

namespace {

Request labelled(std::int64_t label = 2) {
    Request request;
    request.class_labels = {label};
    request.seeds = {7};
    return request;
}

/// What the sample bundle makes of noise and a label of 2: three times x = x.
std::vector<int> expected(std::uint64_t seed) {
    TorchNoise noise(seed);
    std::vector<float> x(48);
    noise.draw(x.data(), {1, 4, 4, 3});
    std::vector<int> pixels;
    for (const float value : x) {
        pixels.push_back(static_cast<int>(std::min(255.0F, std::max(0.0F, 32 * value + 128))));
    }
    return pixels;
}

std::vector<int> pixels(const Output& output) {
    std::vector<int> result;
    for (std::size_t index = 0; index < output.pictures.tensor.elements(); ++index) {
        result.push_back(static_cast<int>(output.pictures.tensor.data[index]));
    }
    return result;
}

}  // namespace

TEST_CASE("a bundle becomes pictures, kept or released between runs") {
    const Folder folder;
    write_sample_bundle(folder.path());
    for (const bool keep : {true, false}) {
        Pipeline pipeline(Bundle(folder.path()), keep);
        for (int run = 0; run < 2; ++run) {
            const Output output = pipeline.run(labelled());
            CHECK(output.pictures.tensor.shape == Shape{1, 1, 4, 4, 3});
            CHECK(pixels(output) == expected(7));
            CHECK(output.program == "toy");
            CHECK(output.seconds.at("total") >= output.seconds.at("denoiser") + output.seconds.at("decoder"));
        }
    }
}

TEST_CASE("several pictures, each from its seed, and their latents") {
    const Folder folder;
    Pipeline pipeline(Bundle(write_sample_bundle(folder.path())), true);
    Request request = labelled();
    request.pictures = 2;
    request.seeds = {7, 8};
    request.want_latents = true;
    std::vector<std::size_t> steps;
    request.on_step = [&](std::size_t step, std::size_t count, double, const Tensor& latents) {
        steps.push_back(step);
        CHECK(count == 3);
        CHECK(latents.shape == Shape{2, 4, 4, 3});
    };
    const Output output = pipeline.run(request);
    std::vector<int> both = expected(7);
    const std::vector<int> second = expected(8);
    both.insert(both.end(), second.begin(), second.end());
    CHECK(pixels(output) == both);
    CHECK(steps == std::vector<std::size_t>{0, 1, 2});
    CHECK(output.latents->tensor.shape == Shape{2, 4, 4, 3});
    request.seeds = {1, 2, 3};
    CHECK(refusal_of([&] { static_cast<void>(pipeline.run(request)); }) ==
          "seed: expected one seed, or one per picture (2), got 3; give as many");
}

TEST_CASE("more pictures than any batch are refused before sizes are multiplied") {
    const Folder folder;
    Pipeline pipeline(Bundle(write_sample_bundle(folder.path())), true);
    Request request = labelled();
    for (const std::int64_t count : {std::int64_t{65537}, std::int64_t{1152921504606846977}}) {
        request.pictures = count;
        CHECK(refusal_of([&] { static_cast<void>(pipeline.run(request)); }) ==
              "request: expected at most 65536 pictures, got " + std::to_string(count) +
                  " for each of 1 conditions; ask for fewer at once");
    }
    request.class_labels = std::vector<std::int64_t>(3, 2);
    request.pictures = 65536 / 3 + 1;
    CHECK(refusal_of([&] { static_cast<void>(pipeline.run(request)); }).find("got 21846 for each of 3 conditions") != std::string::npos);
    request.pictures = 0;
    CHECK(refusal_of([&] { static_cast<void>(pipeline.run(request)); }).find("request: expected at least one picture") == 0);
}

TEST_CASE("given latents, and what does not fit them") {
    const Folder folder;
    Pipeline pipeline(Bundle(write_sample_bundle(folder.path())), true);
    std::vector<float> zeros(48, 0.0F);
    Request request = labelled();
    request.latents = Tensor{Dtype::float32, {1, 4, 4, 3}, reinterpret_cast<std::byte*>(zeros.data())};
    CHECK(pixels(pipeline.run(request)) == std::vector<int>(48, 128));
    request.latents->shape = {4, 4, 3};
    CHECK(refusal_of([&] { static_cast<void>(pipeline.run(request)); }).find("noise: expected shape [1, 4, 4, 3] for draw 0") !=
          std::string::npos);
}

TEST_CASE("a cancelled run stops, and a second one at once is refused") {
    const Folder folder;
    Pipeline pipeline(Bundle(write_sample_bundle(folder.path())), true);
    Request request = labelled();
    std::string busy;
    request.on_step = [&](std::size_t, std::size_t, double, const Tensor&) {
        busy = refusal_of([&] { static_cast<void>(pipeline.run(labelled())); });
        pipeline.cancel();
    };
    CHECK(refusal_of([&] { static_cast<void>(pipeline.run(request)); }) ==
          "program 'toy', iterations[1][0]: expected to run to the end, got a request to stop; run it again for a result");
    CHECK(busy.find("expected one run at a time, got another that has not ended") != std::string::npos);
    CHECK(pixels(pipeline.run(labelled())) == expected(7));
}

TEST_CASE("steps and sizes that the bundle lacks are refused, with those present") {
    const Folder folder;
    Pipeline pipeline(Bundle(write_sample_bundle(folder.path())), true);
    Request request = labelled();
    request.steps = 50;
    CHECK(refusal_of([&] { static_cast<void>(pipeline.run(request)); }) ==
          folder.path().string() + ": expected one of 4x4 in 3 steps, got 4x4 in 50 steps; rebuild with --size 4x4 --steps 50");
}
