#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "allocations.h"
#include "error.h"
#include "interpreter.h"
#include "json.h"
#include "sample_bundle.h"

using namespace dexport;

namespace {

/// Stands for a component: calls a function on its bindings.
class Called final : public Engine {
public:
    using Body = std::function<void(const std::vector<Binding>& inputs, const std::vector<Binding>& outputs)>;
    explicit Called(Body body) : body_(std::move(body)) {}
    void run(const std::vector<Binding>& inputs, const std::vector<Binding>& outputs, const std::string&) override {
        body_(inputs, outputs);
    }

private:
    Body body_;
};

float* floats(const Tensor& tensor) {
    return reinterpret_cast<float*>(tensor.data);
}

/// Two guided steps of a toy: eps = -(latent + text) for both halves; sample = sample + table row * eps mix; then a copy as the result.
Program guided(std::size_t steps = 2) {
    Json document =
        Json::parse(R"({"schema": 1, "name": "toy", "scheduler": "Toy", "steps": 1, "size": [8, 8], "start_step": 0, "timesteps": [],
        "parameters": {"guidance": 3}, "tables": {"times": {"dtype": "float32", "shape": [2, 1, 1]}, "weights": {"dtype": "float16", "shape": [1, 2, 1]}},
        "buffers": {"x": {"dtype": "float32", "shape": ["batch", 2, 3]}, "eps": {"dtype": "float32", "shape": ["2*batch", 2, 3]},
                    "cond": {"dtype": "float32", "shape": ["2*batch", 1, 1]}, "time": {"dtype": "float32", "shape": [1, 1, 1]},
                    "image": {"dtype": "float32", "shape": ["batch", 2, 3]}},
        "request": ["cond"], "results": ["image"],
        "begin": [{"op": "noise", "out": "x"}, {"op": "combine", "out": "x", "terms": [{"buffer": "x", "scale": {"table": "weights", "row": 0}}]}],
        "iterations": [],
        "end": [{"op": "run", "component": "decoder", "inputs": {"latent": ["x"]}, "outputs": {"image": ["image"]}}]})");
    const Json step = Json::parse(R"([{"op": "index", "out": "time", "table": "times", "row": 0},
        {"op": "run", "component": "denoiser", "inputs": {"latent": ["x", "x"], "text": ["cond[0/2]", "cond[1/2]"], "time": ["time"]}, "outputs": {"noise": ["eps"]}},
        {"op": "combine", "out": "x", "terms": [{"buffer": "x", "scale": 0.5},
            {"buffer": "eps[0/2]", "scale": {"constant": 1, "linear": {"guidance": -1}}}, {"buffer": "eps[1/2]", "scale": {"constant": 0, "linear": {"guidance": 1}}}]}])");
    for (std::size_t index = 0; index < steps; ++index) {
        document["iterations"].push_back(step);
        document["iterations"].back()[0]["row"] = index % 2;
        document["timesteps"].push_back(steps - index);
    }
    document["steps"] = steps;
    return program_from_json(document.dump(), "toy.json");
}

struct Toy {
    std::vector<float> cond = {0.25F, -0.5F}, times = {0.5F, 0.25F}, noise = {1, 2, 3, 4, 5, 6};
    std::vector<std::uint16_t> weights = {0x3C00, 0x4000};  // 1, 2
    std::size_t text_joins = 0;
    Called denoiser{[this](const std::vector<Binding>& inputs, const std::vector<Binding>& outputs) {
        REQUIRE(inputs[0].port == "latent");
        const float time = *floats(inputs[2].tensor);
        for (std::size_t index = 0; index < 12; ++index) {
            floats(outputs[0].tensor)[index] = (floats(inputs[0].tensor)[index] + floats(inputs[1].tensor)[index / 6]) * -time;
        }
    }};
    Called decoder{[](const std::vector<Binding>& inputs, const std::vector<Binding>& outputs) {
        std::copy_n(floats(inputs[0].tensor), 6, floats(outputs[0].tensor));
    }};

    std::vector<OwnedTensor> run(const Program& program, const Hooks& hooks = {},
                                 std::map<std::string, double, std::less<>> parameters = {}) {
        GivenNoise given({Dtype::float32, {1, 2, 3}, reinterpret_cast<std::byte*>(noise.data())});
        const std::map<std::string, Engine*> components = {{"denoiser", &denoiser}, {"decoder", &decoder}};
        const Tensors request = {{"cond", {Dtype::float32, {2, 1, 1}, reinterpret_cast<std::byte*>(cond.data())}}};
        const Tensors tables = {{"times", {Dtype::float32, {2, 1, 1}, reinterpret_cast<std::byte*>(times.data())}},
                                {"weights", {Dtype::float16, {1, 2, 1}, reinterpret_cast<std::byte*>(weights.data())}}};
        return run_program(program, {components, request, std::move(parameters), given, tables, 1}, hooks);
    }

    /// The same by hand; every product and sum in float32.
    [[nodiscard]] std::vector<float> expected(float guidance) const {
        std::vector<float> x = noise;
        for (std::size_t index = 0; index < 6; ++index) {
            x[index] *= index < 3 ? 1.0F : 2.0F;
        }
        for (const float time : times) {
            for (float& value : x) {
                const float first = (value + cond[0]) * -time, second = (value + cond[1]) * -time;
                value = value * 0.5F + first * (1 - guidance) + second * guidance;
            }
        }
        return x;
    }
};

std::vector<float> numbers(const OwnedTensor& owned) {
    return {floats(owned.tensor), floats(owned.tensor) + owned.tensor.elements()};
}

}  // namespace

TEST_CASE("the four instructions mean what they say") {
    Toy toy;
    CHECK(numbers(toy.run(guided())[0]) == toy.expected(3));
    CHECK(numbers(toy.run(guided(), {}, {{"guidance", 1.5}})[0]) == toy.expected(1.5F));
}

TEST_CASE("hooks see steps, live buffers, lines and the last use of each component") {
    Toy toy;
    std::vector<std::string> events, lines;
    Hooks hooks;
    hooks.on_step = [&](std::size_t step, double timestep, const FindBuffer& find) {
        events.push_back("step " + std::to_string(step) + " at " + std::to_string(static_cast<int>(timestep)));
        CHECK(find("x") != nullptr);
        CHECK((find("eps") == nullptr) == (step == 1));  // gone after its last use
        CHECK(find("image") == nullptr);
    };
    hooks.release = [&](const std::string& component) { events.push_back("release " + component); };
    hooks.trace = [&](const std::string& line) { lines.push_back(line); };
    static_cast<void>(toy.run(guided(), hooks));
    CHECK(events == std::vector<std::string>{"step 0 at 2", "release denoiser", "step 1 at 1", "release decoder"});
    CHECK(lines.size() == 9);
    CHECK(lines[4] == "iterations[0][2] combine x = 3f000000*x + c0000000*eps[0/2] + 40400000*eps[1/2]");
}

TEST_CASE("a run stops before the next instruction") {
    Toy toy;
    int asked = 0;
    Hooks hooks;
    hooks.cancel = [&] { return ++asked == 4; };
    CHECK(refusal_of([&] { static_cast<void>(toy.run(guided(), hooks)); }) ==
          "program 'toy', iterations[0][1]: expected to run to the end, got a request to stop; run it again for a result");
}

TEST_CASE("numbers that are not finite stop the run with their place") {
    Toy toy;
    toy.denoiser = Called([](const std::vector<Binding>&, const std::vector<Binding>& outputs) {
        std::fill_n(floats(outputs[0].tensor), 12, 0.0F);
        floats(outputs[0].tensor)[5] = std::nanf("");
    });
    CHECK(refusal_of([&] { static_cast<void>(toy.run(guided())); }) ==
          "program 'toy', iterations[0][1], component 'denoiser', output 'noise': expected finite numbers, got 1 of 12 NaN or infinite; "
          "build with a wider precision, or check the model's weights");
}

TEST_CASE("a request that does not fit the program is refused") {
    Toy toy;
    CHECK(refusal_of([&] { static_cast<void>(toy.run(guided(), {}, {{"guidance", std::nan("")}})); }) ==
          "program 'toy', parameter 'guidance': expected a finite number, got nan; give a number");
    GivenNoise noise({Dtype::float32, {}, nullptr});
    const std::map<std::string, Engine*> components = {{"denoiser", &toy.denoiser}, {"decoder", &toy.decoder}};
    const Program program = guided();
    const auto refusal = [&](const Tensors& request, const Tensors& tables) {
        return refusal_of([&] { static_cast<void>(run_program(program, {components, request, {}, noise, tables, 1}, {})); });
    };
    const Tensors cond = {{"cond", {Dtype::float32, {2, 1, 1}, reinterpret_cast<std::byte*>(toy.cond.data())}}};
    CHECK(refusal({}, {}) == "program 'toy': expected the request's buffers cond, got (none); fill exactly these");
    CHECK(refusal({{"cond", {Dtype::float32, {2, 1}, nullptr}}}, {}) ==
          "program 'toy', request 'cond': expected float32 [2, 1, 1], got float32 [2, 1]; give an array of that dtype and shape");
    CHECK(refusal(cond, {}) == "program 'toy': expected table 'times', got none of that name; rebuild the bundle");
}

TEST_CASE("an output may go where an input came from, and into parts of several buffers") {
    Json document = sample_program();
    document["buffers"]["pair"] = {{"dtype", "float32"}, {"shape", {"2*batch", 4, 4, 3}}};
    document["begin"].push_back({{"op", "noise"}, {"out", "pair[0/2]"}});
    document["iterations"] = Json::parse(R"([[
        {"op": "run", "component": "denoiser", "inputs": {"x": ["sample"], "label": ["label"]}, "outputs": {"y": ["sample"]}},
        {"op": "run", "component": "decoder", "inputs": {"x": ["sample", "pair[0/2]"]}, "outputs": {"image": ["pair[1/2]", "sample"]}}]])");
    document["timesteps"] = {1};
    document["results"] = {"sample", "pair"};
    document["end"] = Json::array();
    const Program program = program_from_json(document.dump(), "p.json");
    Called negate([](const std::vector<Binding>& inputs, const std::vector<Binding>& outputs) {
        const Tensor &from = inputs.back().tensor, &to = outputs[0].tensor;
        CHECK(from.data != to.data);
        for (std::size_t index = 0; index < from.elements(); ++index) {
            floats(to)[to.elements() - 1 - index] = -floats(from)[index];
        }
    });
    const std::map<std::string, Engine*> components = {{"denoiser", &negate}, {"decoder", &negate}};
    float label = 1;
    TorchNoise noise(5), again(5);
    const auto results = run_program(
        program, {components, {{"label", {Dtype::float32, {1, 1, 1, 1}, reinterpret_cast<std::byte*>(&label)}}}, {}, noise, {}, 1}, {});
    std::vector<float> first(48), second(48);
    again.draw(first.data(), {48});
    again.draw(second.data(), {48});
    std::vector<float> negated = second;
    std::reverse(negated.begin(), negated.end());
    std::transform(negated.begin(), negated.end(), negated.begin(), std::negate<>());
    CHECK(numbers(results[0]) == first);  // turned twice
    const std::vector<float> pair = numbers(results[1]);
    CHECK(std::vector<float>(pair.begin(), pair.begin() + 48) == second);
    CHECK(std::vector<float>(pair.begin() + 48, pair.end()) == negated);
}

TEST_CASE("the loop allocates nothing after its first step") {
    Toy toy;
    std::size_t before = 0, after = 0;
    Hooks hooks;
    hooks.cancel = [] { return false; };
    hooks.on_step = [&](std::size_t step, double, const FindBuffer&) {
        if (step == 0) {
            before = allocations();
        } else if (step == 48) {  // the last step is followed by releases
            after = allocations();
        }
    };
    static_cast<void>(toy.run(guided(50), hooks));
    CHECK(before > 0);
    CHECK(after == before);
}
