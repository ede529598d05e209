#include "interpreter.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "arithmetic.h"
#include "error.h"

namespace dexport {
namespace {

/// A buffer of the run: has memory from its first write to its last use.
struct Slot {
    Tensor tensor;
    Memory memory;
    std::uint64_t version = 0;  // counts writes

    std::byte* writable() {
        if (tensor.data == nullptr) {
            memory = Memory(tensor.bytes());
            tensor.data = memory.data();
        }
        ++version;
        return tensor.data;
    }

    void forget() {
        memory = Memory();
        tensor.data = nullptr;
    }
};

/// The memory of a ref: rows of a slot.
struct Place {
    Slot* slot;
    Tensor view;  // its data are not set
    std::size_t offset;

    [[nodiscard]] std::byte* read() const { return slot->tensor.data + offset; }
    [[nodiscard]] std::byte* write() const { return slot->writable() + offset; }
};

/// Memory for a port whose refs do not lie one after the other, shared by all calls of its component.
struct Staging {
    Memory memory;
    std::size_t bytes = 0;
    std::vector<std::pair<const Slot*, std::uint64_t>> joined;  // what it holds, slot by slot
    std::vector<std::size_t> offsets;

    std::byte* of_size(std::size_t wanted) {
        if (bytes != wanted) {
            memory = Memory(wanted);
            bytes = wanted;
            joined.clear();
        }
        return memory.data();
    }
};

/// A port and where its rows come from or go to.
struct PortPlaces {
    std::vector<Place> places;
    Staging* staging;  // null where the places lie one after the other
};

/// The refs of a port as the component sees them: joined on axis 0.
Tensor joined_view(const std::vector<Place>& places) {
    Tensor tensor = places[0].view;
    for (std::size_t index = 1; index < places.size(); ++index) {
        tensor.shape[0] += places[index].view.shape[0];
    }
    return tensor;
}

bool are_consecutive(const std::vector<Place>& places) {
    for (std::size_t index = 1; index < places.size(); ++index) {
        const Place &before = places[index - 1], &here = places[index];
        if (here.slot != before.slot || here.offset != before.offset + before.view.bytes()) {
            return false;
        }
    }
    return true;
}

/// The ports of a side in alphabetical order, so that every call of a component names them in the same order.
std::map<std::string, std::vector<Ref>> sorted(const Named<std::vector<Ref>>& ports) {
    return {ports.begin(), ports.end()};
}

/// Everything of a run that is decided before its first instruction.
class Machine {
public:
    Machine(const Program& program, const Inputs& inputs);

    void run(const Hooks& hooks);
    std::vector<OwnedTensor> results();

private:
    struct RunStep {
        Engine* engine;
        std::string where;
        std::vector<Binding> inputs, outputs;
        std::vector<PortPlaces> input_places, output_places;

        void execute();
    };
    struct ScaleRow {
        Tensor row;
        std::size_t summand;
    };
    struct CombineStep {
        Place out;
        std::vector<Place> terms;
        std::vector<Summand> summands;
        std::vector<ScaleRow> rows;
        std::vector<float>* scratch;

        void execute();
    };
    struct DrawStep {
        Place out;
        Noise* noise;

        void execute() const { noise->draw(reinterpret_cast<float*>(out.write()), out.view.shape); }
    };
    struct IndexStep {
        Place out;
        Tensor row;

        void execute() const { broadcast(row.data, row.shape, out.write(), out.view.shape, bytes_of(row.dtype)); }
    };
    using Step = std::variant<RunStep, CombineStep, DrawStep, IndexStep>;

    /// What happens after an instruction.
    struct After {
        std::vector<Slot*> slots;
        std::vector<std::string> components;
        std::vector<std::size_t> iterations;
    };

    void fill_request();
    void check_tables() const;
    void find_ends();
    Step prepared(const Run& run, const std::string& where);
    Step prepared(const Combine& combine, const std::string& where);
    Step prepared(const Draw& draw, const std::string& where);
    Step prepared(const Index& index, const std::string& where);
    PortPlaces port_places(const std::vector<Ref>& refs, const std::string& component, const std::string& port, bool through_staging);
    Place place(const Ref& ref);
    Tensor row_of(const std::string& table, std::int64_t row) const;
    void forget_component(const std::string& component);

    const Program& program_;
    const Inputs& inputs_;
    std::string where_;
    Parameters parameters_;
    std::vector<std::pair<std::string, const Instruction*>> instructions_;
    std::map<std::string, Slot, std::less<>> slots_;
    std::map<std::pair<std::string, std::string>, Staging> staging_;  // by component and port
    std::vector<float> scratch_;
    std::vector<Step> steps_;
    std::vector<After> after_;
};

void check_tensor(const std::string& where, const Tensor& tensor, Dtype dtype, const Shape& shape) {
    if (tensor.dtype != dtype || tensor.shape != shape) {
        throw user_error(where, kind_text(dtype, shape), kind_text(tensor.dtype, tensor.shape), "give an array of that dtype and shape");
    }
}

Machine::Machine(const Program& program, const Inputs& inputs)
    : program_(program), inputs_(inputs), where_("program '" + program.name + "'"), instructions_(program.instructions()) {
    if (inputs.batch < 1) {
        throw user_error(where_, "a batch of at least 1", std::to_string(inputs.batch), "ask for at least one picture");
    }
    parameters_.insert(program.parameters.begin(), program.parameters.end());
    for (const auto& [name, value] : inputs.parameters) {
        if (!std::isfinite(value)) {
            throw user_error(where_ + ", parameter '" + name + "'", "a finite number",
                             std::isnan(value) ? "nan"
                             : value < 0       ? "-inf"
                                               : "inf",
                             "give a number");
        }
        parameters_[name] = value;
    }
    for (const auto& [name, buffer] : program.buffers) {
        slots_[name].tensor = {buffer.dtype, buffer.shape(inputs.batch), nullptr};
    }
    fill_request();
    check_tables();
    find_ends();
    for (const auto& [where, instruction] : instructions_) {
        const std::string full = where_ + ", " + where;
        steps_.push_back(std::visit([&](const auto& each) { return prepared(each, full); }, *instruction));
    }
}

void Machine::fill_request() {
    const bool all =
        std::all_of(program_.request.begin(), program_.request.end(), [&](const auto& name) { return inputs_.request.count(name) != 0; });
    if (!all || inputs_.request.size() != program_.request.size()) {
        const std::string expected = "the request's buffers " + names_text(program_.request);
        throw user_error(where_, expected, names_text(inputs_.request), "fill exactly these");
    }
    for (const auto& [name, given] : inputs_.request) {
        Slot& slot = slots_.find(name)->second;
        check_tensor(where_ + ", request '" + name + "'", given, slot.tensor.dtype, slot.tensor.shape);
        std::memcpy(slot.writable(), given.data, given.bytes());
    }
}

void Machine::check_tables() const {
    for (const auto& [name, table] : program_.tables) {
        const auto found = inputs_.tables.find(name);
        if (found == inputs_.tables.end()) {
            throw user_error(where_, "table '" + name + "'", "none of that name", "rebuild the bundle");
        }
        check_tensor(where_ + ", table '" + name + "'", found->second, table.dtype, table.shape);
    }
}

/// Which buffers and components no later instruction names, and which iterations end where (an empty one with its predecessor).
void Machine::find_ends() {
    after_.resize(instructions_.size());
    std::map<std::string, std::size_t> last_buffer, last_component;
    for (std::size_t position = 0; position < instructions_.size(); ++position) {
        const Instruction& instruction = *instructions_[position].second;
        for (const auto& refs : {reads(instruction), writes(instruction)}) {
            for (const Ref* ref : refs) {
                last_buffer[ref->buffer] = position;
            }
        }
        if (const auto* run = std::get_if<Run>(&instruction)) {
            last_component[run->component] = position;
        }
    }
    for (const auto& [name, position] : last_buffer) {
        if (std::find(program_.results.begin(), program_.results.end(), name) == program_.results.end()) {
            after_[position].slots.push_back(&slots_.find(name)->second);
        }
    }
    for (const auto& [name, position] : last_component) {
        after_[position].components.push_back(name);
    }
    std::size_t position = program_.begin.size();
    for (std::size_t iteration = 0; iteration < program_.iterations.size(); ++iteration) {
        position += program_.iterations[iteration].size();
        if (position > 0) {
            after_[position - 1].iterations.push_back(iteration);
        }
    }
}

Place Machine::place(const Ref& ref) {
    Slot& slot = slots_.find(ref.buffer)->second;
    Tensor view = slot.tensor;
    view.shape[0] /= ref.parts;
    const std::size_t offset = view.bytes() * static_cast<std::size_t>(ref.part);
    return {&slot, std::move(view), offset};
}

Tensor Machine::row_of(const std::string& table, std::int64_t row) const {
    const Tensor& whole = inputs_.tables.find(table)->second;
    Tensor result = {whole.dtype, Shape(whole.shape.begin() + 1, whole.shape.end()), nullptr};
    result.data = whole.data + result.bytes() * static_cast<std::size_t>(row);
    return result;
}

PortPlaces Machine::port_places(const std::vector<Ref>& refs, const std::string& component, const std::string& port, bool through_staging) {
    PortPlaces result{{}, nullptr};
    std::transform(refs.begin(), refs.end(), std::back_inserter(result.places), [this](const Ref& ref) { return place(ref); });
    if (through_staging || !are_consecutive(result.places)) {
        result.staging = &staging_[{component, port}];
    }
    return result;
}

Machine::Step Machine::prepared(const Run& run, const std::string& where) {
    RunStep step{inputs_.components.at(run.component), where + ", component '" + run.component + "'", {}, {}, {}, {}};
    std::vector<const Slot*> read;
    for (const auto& [port, refs] : sorted(run.inputs)) {
        step.input_places.push_back(port_places(refs, run.component, port, false));
        step.inputs.push_back({port, joined_view(step.input_places.back().places)});
        for (const Place& each : step.input_places.back().places) {
            read.push_back(each.slot);
        }
    }
    for (const auto& [port, refs] : sorted(run.outputs)) {
        // A component may write its output before it has read all of its input.
        const bool overlaps = std::any_of(refs.begin(), refs.end(), [&](const Ref& ref) {
            return std::find(read.begin(), read.end(), &slots_.find(ref.buffer)->second) != read.end();
        });
        step.output_places.push_back(port_places(refs, run.component, "-> " + port, overlaps));
        step.outputs.push_back({port, joined_view(step.output_places.back().places)});
    }
    return step;
}

Machine::Step Machine::prepared(const Combine& combine, const std::string&) {
    CombineStep step{place(combine.out), {}, {}, {}, &scratch_};
    for (const Term& term : combine.terms) {
        step.terms.push_back(place(term.buffer));
        const auto* row = std::get_if<Row>(&term.scale);
        if (row != nullptr) {
            step.rows.push_back({row_of(row->table, row->row), step.summands.size()});
        }
        step.summands.push_back({step.terms.back().view.dtype, nullptr, row != nullptr ? 0 : scale_of(term.scale, parameters_), nullptr});
    }
    return step;
}

Machine::Step Machine::prepared(const Draw& draw, const std::string&) {
    return DrawStep{place(draw.out), &inputs_.noise};
}

Machine::Step Machine::prepared(const Index& index, const std::string&) {
    return IndexStep{place(index.out), row_of(index.table, index.row)};
}

/// The rows of an input, joined in `staging` unless it still holds just these.
std::byte* joined(const PortPlaces& input, std::size_t bytes) {
    Staging& staging = *input.staging;
    std::byte* target = staging.of_size(bytes);
    bool same = staging.joined.size() == input.places.size();
    for (std::size_t index = 0; same && index < input.places.size(); ++index) {
        const Place& place = input.places[index];
        same = staging.joined[index] == std::pair<const Slot*, std::uint64_t>(place.slot, place.slot->version) &&
               staging.offsets[index] == place.offset;
    }
    if (same) {
        return target;
    }
    staging.joined.clear();
    staging.offsets.clear();
    std::size_t at = 0;
    for (const Place& place : input.places) {
        std::memcpy(target + at, place.read(), place.view.bytes());
        at += place.view.bytes();
        staging.joined.emplace_back(place.slot, place.slot->version);
        staging.offsets.push_back(place.offset);
    }
    return target;
}

void Machine::RunStep::execute() {
    for (std::size_t index = 0; index < inputs.size(); ++index) {
        const PortPlaces& places = input_places[index];
        Tensor& tensor = inputs[index].tensor;
        tensor.data = places.staging != nullptr ? joined(places, tensor.bytes()) : places.places[0].read();
    }
    for (std::size_t index = 0; index < outputs.size(); ++index) {
        const PortPlaces& places = output_places[index];
        Tensor& tensor = outputs[index].tensor;
        tensor.data = places.staging != nullptr ? places.staging->of_size(tensor.bytes()) : places.places[0].write();
    }
    engine->run(inputs, outputs, where);
    for (std::size_t index = 0; index < outputs.size(); ++index) {
        const Tensor& tensor = outputs[index].tensor;
        if (const std::size_t bad = count_not_finite(tensor.dtype, tensor.data, tensor.elements()); bad != 0) {
            const std::string got = std::to_string(bad) + " of " + std::to_string(tensor.elements()) + " NaN or infinite";
            throw failure(where + ", output '" + outputs[index].port + "'", "finite numbers", got,
                          "build with a wider precision, or check the model's weights");
        }
        if (output_places[index].staging != nullptr) {
            std::size_t at = 0;
            for (const Place& place : output_places[index].places) {
                std::memcpy(place.write(), tensor.data + at, place.view.bytes());
                at += place.view.bytes();
            }
        }
    }
}

void Machine::CombineStep::execute() {
    const std::size_t elements = out.view.elements();
    std::size_t widest = 0;
    for (const ScaleRow& scale : rows) {
        widest = std::max(widest, scale.row.elements());
    }
    if (scratch->size() < rows.size() * elements + widest) {
        scratch->resize(rows.size() * elements + widest);
    }
    float* scales = scratch->data() + widest;
    for (const ScaleRow& scale : rows) {
        widen(scale.row.dtype, scale.row.data, scale.row.elements(), scratch->data());
        const auto* row = reinterpret_cast<const std::byte*>(scratch->data());
        broadcast(row, scale.row.shape, reinterpret_cast<std::byte*>(scales), out.view.shape, sizeof(float));
        summands[scale.summand].scales = scales;
        scales += elements;
    }
    for (std::size_t index = 0; index < terms.size(); ++index) {
        summands[index].data = terms[index].read();
    }
    add_up(summands, out.view.dtype, out.write(), elements);
}

void Machine::forget_component(const std::string& component) {
    for (auto& [key, staging] : staging_) {
        if (key.first == component) {
            staging = Staging();
        }
    }
}

void Machine::run(const Hooks& hooks) {
    const FindBuffer find = [this](const std::string& name) -> const Tensor* {
        const auto found = slots_.find(name);
        return found == slots_.end() || found->second.tensor.data == nullptr ? nullptr : &found->second.tensor;
    };
    for (std::size_t position = 0; position < steps_.size(); ++position) {
        const auto& [place, instruction] = instructions_[position];
        if (hooks.cancel && hooks.cancel()) {
            throw Error(Code::cancelled, where_ + ", " + place, "to run to the end", "a request to stop", "run it again for a result");
        }
        if (hooks.trace) {
            hooks.trace(trace_line(place, *instruction, parameters_));
        }
        std::visit([](auto& step) { step.execute(); }, steps_[position]);
        for (const std::string& component : after_[position].components) {
            forget_component(component);
            if (hooks.release) {
                hooks.release(component);
            }
        }
        for (Slot* slot : after_[position].slots) {
            slot->forget();
        }
        if (hooks.on_step) {
            for (const std::size_t iteration : after_[position].iterations) {
                hooks.on_step(iteration, program_.timesteps[iteration], find);
            }
        }
    }
}

std::vector<OwnedTensor> Machine::results() {
    std::vector<OwnedTensor> results;
    for (const std::string& name : program_.results) {
        Slot& slot = slots_.find(name)->second;
        results.push_back({slot.tensor, std::move(slot.memory)});
    }
    return results;
}

}  // namespace

std::vector<OwnedTensor> run_program(const Program& program, const Inputs& inputs, const Hooks& hooks) {
    Machine machine(program, inputs);
    machine.run(hooks);
    return machine.results();
}

}  // namespace dexport
