#include "trace.h"

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>

namespace dexport {
namespace {

std::string ports_text(const Named<std::vector<Ref>>& ports) {
    std::string text;
    for (const auto& [port, refs] : ports) {
        text += " " + port + "=";
        for (std::size_t index = 0; index < refs.size(); ++index) {
            text += (index == 0 ? "" : ",") + refs[index].text();
        }
    }
    return text;
}

std::string row_text(const std::string& table, std::int64_t row) {
    return table + "[" + std::to_string(row) + "]";
}

std::string scale_text(const Coefficient& coefficient, const Parameters& parameters) {
    if (const auto* row = std::get_if<Row>(&coefficient)) {
        return row_text(row->table, row->row);
    }
    const float scale = scale_of(coefficient, parameters);
    std::uint32_t bits = 0;
    std::memcpy(&bits, &scale, sizeof bits);
    std::array<char, 16> text{};
    std::snprintf(text.data(), text.size(), "%08x", bits);
    return text.data();
}

std::string text_of(const Run& run, const Parameters&) {
    return "run " + run.component + ports_text(run.inputs) + " ->" + ports_text(run.outputs);
}

std::string text_of(const Combine& combine, const Parameters& parameters) {
    std::string text = "combine " + combine.out.text() + " =";
    for (std::size_t index = 0; index < combine.terms.size(); ++index) {
        const Term& term = combine.terms[index];
        text += (index == 0 ? " " : " + ") + scale_text(term.scale, parameters) + "*" + term.buffer.text();
    }
    return text;
}

std::string text_of(const Draw& draw, const Parameters&) {
    return "noise " + draw.out.text();
}

std::string text_of(const Index& index, const Parameters&) {
    return "index " + index.out.text() + " = " + row_text(index.table, index.row);
}

}  // namespace

float scale_of(const Coefficient& coefficient, const Parameters& parameters) {
    if (const auto* number = std::get_if<double>(&coefficient)) {
        return static_cast<float>(*number);
    }
    const auto& linear = std::get<Linear>(coefficient);
    double sum = 0;
    for (const auto& [name, slope] : linear.slopes) {
        sum += slope * parameters.find(name)->second;
    }
    return static_cast<float>(linear.constant + sum);
}

std::string trace_line(const std::string& place, const Instruction& instruction, const Parameters& parameters) {
    return place + " " + std::visit([&](const auto& each) { return text_of(each, parameters); }, instruction);
}

}  // namespace dexport
