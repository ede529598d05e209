#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "program.h"
#include "sample_bundle.h"

using namespace dexport;

TEST_CASE("a program is read with all of its instructions in order") {
    const Program program = program_from_json(sample_program().dump(), "p.json");
    const auto instructions = program.instructions();
    CHECK(instructions.size() == 8);
    CHECK(instructions[0].first == "begin[0]");
    CHECK(instructions[4].first == "iterations[1][1]");
    CHECK(instructions.back().first == "end[0]");
    CHECK(reads(*instructions[2].second).size() == 2);
    CHECK(writes(*instructions[2].second)[0]->text() == "sample");
    CHECK(program.buffers.at("label").shape(3) == Shape{3, 1, 1, 1});
}

TEST_CASE("refs, rows and coefficients have their forms") {
    Json document = sample_program();
    document["buffers"]["eps"]["shape"][0] = "2*batch";
    document["parameters"]["scale"] = 7.5;
    document["tables"]["times"] = {{"dtype", "float32"}, {"shape", {3, 1}}};
    document["iterations"][0][1]["terms"] = Json::parse(
        R"([{"buffer": "eps[1/2]", "scale": {"constant": 1, "linear": {"scale": -1}}}, {"buffer": "sample", "scale": {"table": "times", "row": 2}}])");
    const Program program = program_from_json(document.dump(), "p.json");
    const auto& combine = std::get<Combine>(program.iterations[0][1]);
    CHECK(combine.terms[0].buffer.text() == "eps[1/2]");
    CHECK(std::get<Linear>(combine.terms[0].scale).slopes[0].second == -1);
    CHECK(std::get<Row>(combine.terms[1].scale).row == 2);
    CHECK(program.buffers.at("eps").rows.text() == "2*batch");
    CHECK(program.buffers.at("eps").rows.at(3) == 6);
    CHECK(program.parameters[0].second == 7.5);
}

TEST_CASE("a newer schema needs a newer dexport") {
    Json document = sample_program();
    document["schema"] = 2;
    CHECK(refusal_of([&] { static_cast<void>(program_from_json(document.dump(), "p.json")); }) ==
          "p.json: expected program schema 1 or older, got schema 2; install a newer dexport to read it");
}

TEST_CASE("what the schema does not allow is refused with its place") {
    Json document = sample_program();
    document["begin"][0]["op"] = "jump";
    CHECK(refusal_of([&] { static_cast<void>(program_from_json(document.dump(), "p.json")); }) ==
          "p.json: begin.0.op: expected one of run, combine, noise, index, got 'jump'; get the bundle again or rebuild it");
}
