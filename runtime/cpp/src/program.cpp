#include "program.h"

#include <nlohmann/json.hpp>

#include "json.h"
#include "schema.h"

namespace dexport {
namespace {

constexpr int program_schema = 1;

const Schema& schema() {
    static const Schema instance(
#include "program_schema.inc"
    );
    return instance;
}

std::string text_of(const Json& value) {
    return value.get<std::string>();
}

/// Reads `name` or `name[part/parts]`, as the schema allows them.
Ref ref_from(const Json& value) {
    const std::string text = text_of(value);
    const std::size_t open = text.find('['), slash = text.find('/', open);
    if (open == std::string::npos) {
        return {text};
    }
    return {text.substr(0, open), std::stoll(text.substr(open + 1, slash - open - 1)), std::stoll(text.substr(slash + 1))};
}

/// Reads an integer, "batch" or "n*batch", as the schema allows them.
Rows rows_from(const Json& value) {
    if (!value.is_string()) {
        return {value.get<std::int64_t>()};
    }
    const std::string text = text_of(value);
    const std::size_t star = text.find('*');
    return {star == std::string::npos ? 1 : std::stoll(text.substr(0, star)), true};
}

Named<double> numbers_from(const Json& values) {
    Named<double> numbers;
    for (const auto& item : values.items()) {
        numbers.emplace_back(item.key(), item.value().get<double>());
    }
    return numbers;
}

Named<std::vector<Ref>> ports_from(const Json& values) {
    Named<std::vector<Ref>> ports;
    for (const auto& item : values.items()) {
        std::vector<Ref> refs;
        for (const Json& ref : item.value()) {
            refs.push_back(ref_from(ref));
        }
        ports.emplace_back(item.key(), std::move(refs));
    }
    return ports;
}

Coefficient coefficient_from(const Json& value) {
    if (!value.is_object()) {
        return value.get<double>();
    }
    if (value.contains("table")) {
        return Row{text_of(value.at("table")), value.at("row").get<std::int64_t>()};
    }
    return Linear{value.at("constant").get<double>(), numbers_from(value.at("linear"))};
}

Instruction instruction_from(const Json& value) {
    const std::string op = text_of(value.at("op"));
    if (op == "run") {
        return Run{text_of(value.at("component")), ports_from(value.at("inputs")), ports_from(value.at("outputs"))};
    }
    const Ref out = ref_from(value.at("out"));
    if (op == "combine") {
        Combine combine{out, {}};
        for (const Json& term : value.at("terms")) {
            combine.terms.push_back({ref_from(term.at("buffer")), coefficient_from(term.at("scale"))});
        }
        return combine;
    }
    if (op == "noise") {
        return Draw{out};
    }
    return Index{out, text_of(value.at("table")), value.at("row").get<std::int64_t>()};
}

std::vector<Instruction> block_from(const Json& values) {
    std::vector<Instruction> block;
    for (const Json& value : values) {
        block.push_back(instruction_from(value));
    }
    return block;
}

Buffer buffer_from(const Json& value) {
    Buffer buffer{dtype_named(text_of(value.at("dtype"))), rows_from(value.at("shape")[0]), {}};
    for (std::size_t axis = 1; axis < value.at("shape").size(); ++axis) {
        buffer.sizes.push_back(value.at("shape")[axis].get<std::int64_t>());
    }
    return buffer;
}

Program program_from(const Json& document) {
    Program program;
    program.name = text_of(document.at("name"));
    program.steps = document.at("steps").get<std::int64_t>();
    program.start_step = document.at("start_step").get<std::int64_t>();
    program.timesteps = document.at("timesteps").get<std::vector<double>>();
    program.parameters = numbers_from(document.at("parameters"));
    for (const auto& item : document.at("tables").items()) {
        program.tables[item.key()] = {dtype_named(text_of(item.value().at("dtype"))), item.value().at("shape").get<Shape>()};
    }
    for (const auto& item : document.at("buffers").items()) {
        program.buffers[item.key()] = buffer_from(item.value());
    }
    program.request = document.at("request").get<std::vector<std::string>>();
    program.results = document.at("results").get<std::vector<std::string>>();
    program.begin = block_from(document.at("begin"));
    for (const Json& block : document.at("iterations")) {
        program.iterations.push_back(block_from(block));
    }
    program.end = block_from(document.at("end"));
    return program;
}

/// The refs of the ports of one side of a Run.
std::vector<const Ref*> refs_of(const Named<std::vector<Ref>>& ports) {
    std::vector<const Ref*> result;
    for (const auto& port : ports) {
        for (const Ref& ref : port.second) {
            result.push_back(&ref);
        }
    }
    return result;
}

}  // namespace

std::string Ref::text() const {
    return parts == 1 ? buffer : buffer + "[" + std::to_string(part) + "/" + std::to_string(parts) + "]";
}

std::string Rows::text() const {
    const std::string number = std::to_string(count);
    return !per_batch ? number : count == 1 ? "batch" : number + "*batch";
}

Shape Buffer::shape(std::int64_t batch) const {
    Shape shape = {rows.at(batch)};
    shape.insert(shape.end(), sizes.begin(), sizes.end());
    return shape;
}

std::vector<std::pair<std::string, const Instruction*>> Program::instructions() const {
    std::vector<std::pair<std::string, const Instruction*>> result;
    const auto add = [&](const std::string& place, const std::vector<Instruction>& block) {
        for (std::size_t index = 0; index < block.size(); ++index) {
            result.emplace_back(place + "[" + std::to_string(index) + "]", &block[index]);
        }
    };
    add("begin", begin);
    for (std::size_t step = 0; step < iterations.size(); ++step) {
        add("iterations[" + std::to_string(step) + "]", iterations[step]);
    }
    add("end", end);
    return result;
}

std::vector<const Ref*> reads(const Instruction& instruction) {
    std::vector<const Ref*> result;
    if (const auto* run = std::get_if<Run>(&instruction)) {
        return refs_of(run->inputs);
    }
    if (const auto* combine = std::get_if<Combine>(&instruction)) {
        for (const Term& term : combine->terms) {
            result.push_back(&term.buffer);
        }
    }
    return result;
}

std::vector<const Ref*> writes(const Instruction& instruction) {
    if (const auto* run = std::get_if<Run>(&instruction)) {
        return refs_of(run->outputs);
    }
    if (const auto* combine = std::get_if<Combine>(&instruction)) {
        return {&combine->out};
    }
    const auto* draw = std::get_if<Draw>(&instruction);
    return {draw != nullptr ? &draw->out : &std::get<Index>(instruction).out};
}

Program program_from_json(std::string_view text, const std::string& where) {
    const Json document = parse_json(text, where, max_program_bytes);
    check_version(document, "program", program_schema, where);
    schema().check(document, where);
    return program_from(document);
}

}  // namespace dexport
