#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tensor.h"

namespace dexport {

inline constexpr std::size_t max_program_bytes = 16 << 20;

template <typename Value>
using Named = std::vector<std::pair<std::string, Value>>;  ///< in the document's order

/// Part `part` of `parts` equal parts of a buffer's rows (axis 0). Written `name[part/parts]`, the whole buffer `name`.
struct Ref {
    std::string buffer;
    std::int64_t part = 0;
    std::int64_t parts = 1;

    [[nodiscard]] std::string text() const;
};

/// A coefficient of the request: constant + sum of slope * parameter.
struct Linear {
    double constant;
    Named<double> slopes;
};

/// A coefficient per element: row `row` of a table, broadcast over the buffer.
struct Row {
    std::string table;
    std::int64_t row;
};

using Coefficient = std::variant<double, Linear, Row>;

/// One summand of a Combine.
struct Term {
    Ref buffer;
    Coefficient scale;
};

/// Calls a component. Each input port gets its refs concatenated on axis 0; each output is split evenly over its refs.
struct Run {
    std::string component;
    Named<std::vector<Ref>> inputs;
    Named<std::vector<Ref>> outputs;
};

/// out = sum of scale * buffer: scales rounded to float32, summed in float32 in the order of the terms. `out` may be a term.
struct Combine {
    Ref out;
    std::vector<Term> terms;
};

/// Fills `out` with standard normal numbers from the request's stream, in program order.
struct Draw {
    Ref out;
};

/// Copies row `row` of a table into `out`, broadcast.
struct Index {
    Ref out;
    std::string table;
    std::int64_t row;
};

using Instruction = std::variant<Run, Combine, Draw, Index>;

/// Size of axis 0: `count`, times the request's batch when `per_batch`. Written 3, "batch", "2*batch".
struct Rows {
    std::int64_t count;
    bool per_batch = false;

    [[nodiscard]] std::int64_t at(std::int64_t batch) const { return per_batch ? count * batch : count; }
    [[nodiscard]] std::string text() const;
    [[nodiscard]] bool operator==(const Rows& other) const { return count == other.count && per_batch == other.per_batch; }
    [[nodiscard]] bool operator!=(const Rows& other) const { return !(*this == other); }
};

/// A named tensor: rows on axis 0, then fixed sizes.
struct Buffer {
    Dtype dtype;
    Rows rows;
    Shape sizes;

    [[nodiscard]] Shape shape(std::int64_t batch) const;
};

/// A tensor in the program's safetensors file; axis 0 is what `row` indexes.
struct Table {
    Dtype dtype;
    Shape shape;
};

/// A whole sampling run for one (scheduler, steps, size, start step): `begin` runs once, one list per model call, then `end`.
struct Program {
    std::string name;
    std::int64_t steps;
    std::int64_t start_step;
    std::vector<double> timesteps;  ///< one per iteration, for callbacks
    Named<double> parameters;       ///< numbers of the request with their defaults
    std::map<std::string, Table, std::less<>> tables;
    std::map<std::string, Buffer, std::less<>> buffers;
    std::vector<std::string> request;  ///< buffers that the request fills before `begin`
    std::vector<std::string> results;  ///< buffers that are handed back
    std::vector<Instruction> begin;
    std::vector<std::vector<Instruction>> iterations;
    std::vector<Instruction> end;

    /// Every instruction in order, with the place that errors name: `begin[0]`, `iterations[3][1]`, `end[0]`.
    [[nodiscard]] std::vector<std::pair<std::string, const Instruction*>> instructions() const;
};

/// What an instruction reads and writes, in order.
[[nodiscard]] std::vector<const Ref*> reads(const Instruction& instruction);
[[nodiscard]] std::vector<const Ref*> writes(const Instruction& instruction);

/// Reads a program and checks its form; `check_program` checks its meaning. `where` is the file's name.
/// Throws a user error: not JSON, not of the schema, or a newer schema; names the place in the document.
[[nodiscard]] Program program_from_json(std::string_view text, const std::string& where);

}  // namespace dexport
