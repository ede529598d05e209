#include "program_check.h"

#include <algorithm>
#include <set>

#include "error.h"

namespace dexport {
namespace {

constexpr std::uint64_t max_elements = std::uint64_t{1} << 33;  // of one buffer at batch 1, and of one table

Error refused(const std::string& where, const std::string& expected, const std::string& got) {
    return user_error(where, expected, got, "rebuild the bundle");
}

/// A fraction of a buffer's rows, from 0 to 1; parts are at most 9999, so that products fit easily.
struct Fraction {
    std::int64_t above, below;

    bool operator<(const Fraction& other) const { return above * other.below < other.above * below; }
    bool operator<=(const Fraction& other) const { return !(other < *this); }
};

/// Which parts of a buffer's rows are written: disjoint, sorted, merged intervals.
class Coverage {
public:
    void add(const Ref& ref) {
        intervals_.push_back(interval(ref));
        std::sort(intervals_.begin(), intervals_.end(), [](const auto& one, const auto& other) { return one.first < other.first; });
        std::vector<std::pair<Fraction, Fraction>> merged;
        for (const auto& [low, high] : intervals_) {
            if (!merged.empty() && low <= merged.back().second) {
                merged.back().second = std::max(merged.back().second, high);
            } else {
                merged.emplace_back(low, high);
            }
        }
        intervals_ = std::move(merged);
    }

    [[nodiscard]] bool holds(const Ref& ref) const {
        const auto [low, high] = interval(ref);
        return std::any_of(intervals_.begin(), intervals_.end(),
                           [&, &first = low, &last = high](const auto& item) { return item.first <= first && last <= item.second; });
    }

private:
    static std::pair<Fraction, Fraction> interval(const Ref& ref) { return {{ref.part, ref.parts}, {ref.part + 1, ref.parts}}; }

    std::vector<std::pair<Fraction, Fraction>> intervals_;
};

std::string shape_of(const Rows& rows, const Shape& sizes) {
    const std::string rest = shape_text(sizes);
    return "shape [" + rows.text() + (sizes.empty() ? "" : ", ") + rest.substr(1);
}

std::string port_shape(const Port& port) {
    std::string text;
    for (const auto& size : port.shape) {
        const auto* number = std::get_if<std::int64_t>(&size);
        text += (text.empty() ? "" : ", ") + (number != nullptr ? std::to_string(*number) : repr(std::get<std::string>(size)));
    }
    return "shape [" + text + "]";
}

class Checker {
public:
    Checker(const Program& program, const std::vector<std::pair<std::string, Component>>& components)
        : program_(program), components_(components), where_("program '" + program.name + "'") {}

    void check() {
        check_declarations();
        std::map<std::string, Coverage, std::less<>> written;
        for (const std::string& name : program_.request) {
            written[name].add({name});
        }
        const std::string program_where = where_;
        for (const auto& [place, instruction] : program_.instructions()) {
            where_ = program_where + ", " + place;
            check_refs(*instruction);
            for (const Ref* ref : reads(*instruction)) {
                if (!written[ref->buffer].holds(*ref)) {
                    throw refused(where_, "'" + ref->text() + "' to be written before it is read", "no earlier instruction does");
                }
            }
            std::visit([this](const auto& each) { check_instruction(each); }, *instruction);
            for (const Ref* ref : writes(*instruction)) {
                written[ref->buffer].add(*ref);
            }
        }
        for (const std::string& name : program_.results) {
            if (!written[name].holds({name})) {
                throw refused(program_where, "the result '" + name + "' to be written", "it is not");
            }
        }
        where_ = program_where;
        check_join();
    }

private:
    void check_declarations() const {
        if (program_.timesteps.size() != program_.iterations.size()) {
            const std::string counts =
                std::to_string(program_.timesteps.size()) + " timesteps for " + std::to_string(program_.iterations.size()) + " iterations";
            throw refused(where_, "one timestep per iteration", counts);
        }
        if (program_.start_step >= program_.steps) {
            const std::string expected = "a start step below the " + std::to_string(program_.steps) + " steps";
            throw refused(where_, expected, std::to_string(program_.start_step));
        }
        for (const auto& [name, buffer] : program_.buffers) {
            check_elements("buffer '" + name + "'", buffer.shape(1));
        }
        for (const auto& [name, table] : program_.tables) {
            check_elements("table '" + name + "'", table.shape);
        }
        for (const auto* names : {&program_.request, &program_.results}) {
            for (const std::string& name : *names) {
                check_buffer(name);
            }
        }
    }

    void check_elements(const std::string& name, const Shape& shape) const {
        std::uint64_t count = 1;
        for (const std::int64_t size : shape) {  // each below 2^31 and the product of those before below 2^33: no overflow
            count *= static_cast<std::uint64_t>(size);
            if (count > max_elements) {
                const std::string expected = "at most " + std::to_string(max_elements) + " elements";
                throw refused(where_ + ", " + name, expected, "shape " + shape_text(shape));
            }
        }
    }

    void check_buffer(const std::string& name) const {
        if (program_.buffers.count(name) == 0) {
            throw refused(where_, "one of the buffers " + names_text(program_.buffers), "'" + name + "'");
        }
    }

    /// Rule 7.
    void check_join() const {
        if (program_.results.empty()) {
            throw refused(where_, "at least one result", "none");
        }
        const auto buffer_of = [this](const std::string& name) -> const Buffer& { return program_.buffers.find(name)->second; };
        const auto is_picture = [](const Shape& sizes) { return sizes.size() == 3 || sizes.size() == 4; };
        const auto text = [](const std::string& name, const Buffer& buffer) {
            return "'" + name + "' of " + name_of(buffer.dtype) + ", " + shape_of(buffer.rows, buffer.sizes);
        };
        const std::string& first = program_.results[0];
        const Buffer& one = buffer_of(first);
        for (std::size_t index = 1; index < program_.results.size(); ++index) {
            const std::string& name = program_.results[index];
            const Buffer& other = buffer_of(name);
            const bool joins = is_picture(one.sizes) && is_picture(other.sizes) && one.dtype == other.dtype && one.rows == other.rows &&
                               std::equal(one.sizes.end() - 3, one.sizes.end(), other.sizes.end() - 3);
            if (!joins) {
                throw refused(where_, "results of [rows, height, width, 3] or [rows, frames, height, width, 3], alike but for their frames",
                              text(first, one) + " and " + text(name, other));
            }
        }
    }

    /// Rules 1 and 2 for every ref.
    void check_refs(const Instruction& instruction) const {
        std::vector<const Ref*> refs = reads(instruction);
        const std::vector<const Ref*> written = writes(instruction);
        refs.insert(refs.end(), written.begin(), written.end());
        for (const Ref* ref : refs) {
            check_buffer(ref->buffer);
            const Rows& rows = buffer(*ref).rows;
            if (ref->part >= ref->parts || rows.count % ref->parts != 0) {
                throw refused(where_, "a legal part of the " + rows.text() + " rows of '" + ref->buffer + "'", "'" + ref->text() + "'");
            }
        }
    }

    void check_instruction(const Combine& combine) const {
        check_float(combine.out);
        for (const Term& term : combine.terms) {
            check_term(combine.out, term);
        }
    }

    void check_instruction(const Draw& draw) const {
        check_float(draw.out);
        if (buffer(draw.out).dtype != Dtype::float32) {
            throw refused(where_, "noise in a float32 buffer", name_of(buffer(draw.out).dtype));
        }
    }

    void check_instruction(const Index& index) const {
        const Table& declared = table(index.table, index.row);
        const Dtype dtype = buffer(index.out).dtype;
        if (declared.dtype != dtype) {
            const std::string expected = "table '" + index.table + "' to have the dtype of '" + index.out.text() + "', " + name_of(dtype);
            throw refused(where_, expected, name_of(declared.dtype));
        }
        check_broadcast(index.table, declared, index.out);
    }

    void check_instruction(const Run& run) {
        for (const auto* ports : {&run.inputs, &run.outputs}) {
            for (const auto& [port, refs] : *ports) {
                check_same(refs, where_ + ", component '" + run.component + "', port '" + port + "'");
            }
        }
        for (const auto& [port, refs] : run.outputs) {
            const Rows first = rows_of(refs[0]);
            if (std::any_of(refs.begin(), refs.end(), [&](const Ref& ref) { return rows_of(ref) != first; })) {
                std::string got;
                for (const Ref& ref : refs) {
                    got += (got.empty() ? "" : ", ") + ref.text();
                }
                throw refused(where_, "parts of equal rows for output '" + port + "' of '" + run.component + "'", got);
            }
        }
        check_run(run);
    }

    void check_term(const Ref& out, const Term& term) const {
        check_float(term.buffer);
        if (rows_of(out) != rows_of(term.buffer) || buffer(out).sizes != buffer(term.buffer).sizes) {
            const std::string expected =
                "'" + term.buffer.text() + "' to have the shape of '" + out.text() + "', " + shape_of(rows_of(out), buffer(out).sizes);
            throw refused(where_, expected, shape_of(rows_of(term.buffer), buffer(term.buffer).sizes));
        }
        if (const auto* linear = std::get_if<Linear>(&term.scale)) {
            for (const auto& slope : linear->slopes) {
                check_parameter(slope.first);
            }
        } else if (const auto* row = std::get_if<Row>(&term.scale)) {
            const Table& declared = table(row->table, row->row);
            if (declared.dtype != Dtype::float32 && declared.dtype != Dtype::float16) {
                throw refused(where_, "table '" + row->table + "' to hold floats", name_of(declared.dtype));
            }
            check_broadcast(row->table, declared, out);
        }
    }

    void check_parameter(const std::string& name) const {
        const auto& known = program_.parameters;
        if (std::none_of(known.begin(), known.end(), [&](const auto& item) { return item.first == name; })) {
            throw refused(where_, "one of the parameters " + names_text(known), "'" + name + "'");
        }
    }

    void check_float(const Ref& ref) const {
        const Dtype dtype = buffer(ref).dtype;
        if (dtype != Dtype::float32 && dtype != Dtype::float16) {
            throw refused(where_, "'" + ref.text() + "' to hold floats", name_of(dtype));
        }
    }

    void check_same(const std::vector<Ref>& refs, const std::string& where) const {
        std::set<std::string> kinds;
        for (const Ref& ref : refs) {
            kinds.insert(kind_text(buffer(ref).dtype, buffer(ref).sizes));
        }
        if (kinds.size() > 1) {
            std::string got;
            for (const std::string& kind : kinds) {
                got += (got.empty() ? "" : " and ") + kind;
            }
            throw refused(where, "refs of one dtype and shape (rows aside)", got);
        }
    }

    [[nodiscard]] const Table& table(const std::string& name, std::int64_t row) const {
        const auto found = program_.tables.find(name);
        if (found == program_.tables.end()) {
            throw refused(where_, "one of the tables " + names_text(program_.tables), "'" + name + "'");
        }
        if (row >= found->second.shape[0]) {
            const std::string expected = "a row below " + std::to_string(found->second.shape[0]) + " of table '" + name + "'";
            throw refused(where_, expected, std::to_string(row));
        }
        return found->second;
    }

    /// A row never spans axis 0 of a buffer whose rows follow the batch, unless it has one row there.
    void check_broadcast(const std::string& name, const Table& declared, const Ref& out) const {
        const Shape row(declared.shape.begin() + 1, declared.shape.end());
        const Rows rows = rows_of(out);
        Shape target = {rows.per_batch ? 1 : rows.count};
        target.insert(target.end(), buffer(out).sizes.begin(), buffer(out).sizes.end());
        const bool fits = row.size() <= target.size() && std::equal(row.rbegin(), row.rend(), target.rbegin(),
                                                                    [](auto size, auto wanted) { return size == 1 || size == wanted; });
        if (!fits) {
            const std::string expected = "a row of table '" + name + "' to broadcast to '" + out.text() + "', ";
            throw refused(where_, expected + shape_of(rows, buffer(out).sizes), "row of shape " + shape_text(row));
        }
    }

    /// Names and shapes of ports.
    void check_run(const Run& run) {
        const auto found =
            std::find_if(components_.begin(), components_.end(), [&](const auto& item) { return item.first == run.component; });
        if (found == components_.end()) {
            throw refused(where_, "one of the components " + names_text(components_), "'" + run.component + "'");
        }
        symbols_.clear();
        check_side("inputs", run.component, run.inputs, found->second.inputs);
        check_side("outputs", run.component, run.outputs, found->second.outputs);
    }

    void check_side(const std::string& side, const std::string& component, const Named<std::vector<Ref>>& given,
                    const std::map<std::string, Port>& ports) {
        const bool all = std::all_of(given.begin(), given.end(), [&](const auto& item) { return ports.count(item.first) != 0; });
        if (!all || given.size() != ports.size()) {
            throw refused(where_, "the " + side + " " + names_text(ports) + " of component '" + component + "'", names_text(given));
        }
        for (const auto& [name, refs] : given) {
            check_port(refs, ports.at(name), where_ + ", component '" + component + "', port '" + name + "'");
        }
    }

    void check_port(const std::vector<Ref>& refs, const Port& port, const std::string& where) {
        const Buffer& declared = buffer(refs[0]);
        const Rows rows = joined_rows(refs, where);
        if (name_of(declared.dtype) != port.dtype) {
            throw refused(where, port.dtype, name_of(declared.dtype));
        }
        std::vector<Rows> given = {rows};
        std::transform(declared.sizes.begin(), declared.sizes.end(), std::back_inserter(given), [](auto size) { return Rows{size}; });
        bool fits = given.size() == port.shape.size();
        for (std::size_t axis = 0; axis < std::min(given.size(), port.shape.size()); ++axis) {
            fits = check_axis(given[axis], port.shape[axis]) && fits;
        }
        if (!fits) {
            throw refused(where, port_shape(port), shape_of(rows, declared.sizes));
        }
    }

    bool check_axis(const Rows& size, const std::variant<std::int64_t, std::string>& wanted) {
        if (const auto* symbol = std::get_if<std::string>(&wanted)) {
            return symbols_.emplace(*symbol, size).first->second == size;
        }
        const std::int64_t number = std::get<std::int64_t>(wanted);
        if (!size.per_batch) {
            return size.count == number;
        }
        const std::int64_t batch = number / size.count;
        const bool fits = number % size.count == 0 && batch_.value_or(batch) == batch;
        batch_ = batch_.value_or(batch);
        return fits;
    }

    [[nodiscard]] Rows joined_rows(const std::vector<Ref>& refs, const std::string& where) const {
        Rows sum = {0, rows_of(refs[0]).per_batch};
        for (const Ref& ref : refs) {
            if (rows_of(ref).per_batch != sum.per_batch) {
                std::string got;
                for (const Ref& each : refs) {
                    got += (got.empty() ? "'" : ", '") + each.text() + "' with " + rows_of(each).text();
                }
                throw refused(where, "refs whose rows all follow the batch, or none", got);
            }
            sum.count += rows_of(ref).count;
        }
        return sum;
    }

    [[nodiscard]] const Buffer& buffer(const Ref& ref) const { return program_.buffers.find(ref.buffer)->second; }

    [[nodiscard]] Rows rows_of(const Ref& ref) const {
        const Rows& rows = buffer(ref).rows;
        return {rows.count / ref.parts, rows.per_batch};
    }

    const Program& program_;
    const std::vector<std::pair<std::string, Component>>& components_;
    std::string where_;  // the program, then the instruction that is checked
    std::map<std::string, Rows> symbols_;
    std::optional<std::int64_t> batch_;
};

}  // namespace

void check_program(const Program& program, const std::vector<std::pair<std::string, Component>>& components) {
    Checker(program, components).check();
}

}  // namespace dexport
