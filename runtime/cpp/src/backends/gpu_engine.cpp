#include "backends/gpu_engine.h"

#include <algorithm>
#include <set>

#include "backends/cuda_graph.h"
#include "error.h"

namespace dexport {
namespace {

/// Whether both name the same ports with the same shapes. Their types are those of the plan, see `check_port`.
bool are_alike(const std::vector<Binding>& these, const std::vector<Binding>& those) {
    return std::equal(these.begin(), these.end(), those.begin(), those.end(), [](const Binding& one, const Binding& other) {
        return one.port == other.port && one.tensor.dtype == other.tensor.dtype && one.tensor.shape == other.tensor.shape;
    });
}

/// The names on one side of an engine and of a program must be the same.
void check_names(const std::string& where, const char* side, const std::vector<PlanPort>& ports, const std::vector<Binding>& bindings) {
    std::set<std::string> engine, program;
    std::transform(ports.begin(), ports.end(), std::inserter(engine, engine.end()), [](const PlanPort& port) { return port.name; });
    std::transform(bindings.begin(), bindings.end(), std::inserter(program, program.end()), [](const Binding& each) { return each.port; });
    if (engine != program) {
        throw failure(where, std::string(side) + " " + names_text(program), names_text(engine), "rebuild the bundle");
    }
}

void check_kind(const std::string& where, const char* side, const Binding& binding, Dtype dtype, const Shape& shape) {
    if (binding.tensor.dtype != dtype || binding.tensor.shape != shape) {
        throw failure(where + ", " + side + " '" + binding.port + "'", kind_text(binding.tensor.dtype, binding.tensor.shape),
                      kind_text(dtype, shape), "rebuild the bundle");
    }
}

Dtype dtype_of(const std::vector<PlanPort>& ports, const std::string& name) {
    return std::find_if(ports.begin(), ports.end(), [&](const PlanPort& port) { return port.name == name; })->dtype;
}

class GpuEngine final : public Engine {
public:
    GpuEngine(std::unique_ptr<Plan> plan, std::shared_ptr<const CudaDevice> device, std::shared_ptr<DeviceMemory> activations,
              std::string name)
        : name_(std::move(name)),
          device_(std::move(device)),
          activations_(std::move(activations)),
          plan_(std::move(plan)),
          records_(plan_->can_be_recorded()) {}

    /// What the library frees, it frees on the device of the current thread.
    ~GpuEngine() override { static_cast<void>(device_->try_use()); }
    GpuEngine(const GpuEngine&) = delete;
    GpuEngine& operator=(const GpuEngine&) = delete;

    void run(const std::vector<Binding>& inputs, const std::vector<Binding>& outputs, const std::string& where) override {
        device_->use();
        const auto found = std::find_if(prepared_.begin(), prepared_.end(), [&](const Prepared& each) {
            return are_alike(each.inputs, inputs) && are_alike(each.outputs, outputs);
        });
        Prepared& prepared = found == prepared_.end() ? prepare(inputs, outputs, where) : *found;
        place(prepared);
        for (std::size_t index = 0; index < inputs.size(); ++index) {
            device_->upload(inputs[index].tensor.data, addresses_[index], inputs[index].tensor.bytes());
        }
        queue(prepared);
        for (std::size_t index = 0; index < outputs.size(); ++index) {
            device_->download(addresses_[inputs.size() + index], outputs[index].tensor.data, outputs[index].tensor.bytes());
        }
        device_->wait();
    }

private:
    /// What a set of input shapes needs. A recorded graph holds for the addresses that `bound` names.
    struct Prepared {
        std::vector<Binding> inputs, outputs;  // without data
        std::size_t memory;                    // bytes for activations
        std::unique_ptr<PlanContext> context;
        std::vector<std::uint64_t> bound;
        bool has_run = false;
        std::unique_ptr<CudaGraph> graph;
    };

    Prepared& prepare(const std::vector<Binding>& inputs, const std::vector<Binding>& outputs, const std::string& where) {
        check_names(where, "inputs", plan_->inputs(), inputs);
        check_names(where, "outputs", plan_->outputs(), outputs);
        for (const Binding& input : inputs) {
            check_kind(where, "input", input, dtype_of(plan_->inputs(), input.port), input.tensor.shape);
        }
        const int profile = profile_for(name_, plan_->profiles(), inputs);
        Prepared prepared{inputs, outputs, plan_->memory(profile), plan_->context(profile, inputs), {}, false, nullptr};
        for (const Binding& output : outputs) {
            check_kind(where, "output", output, dtype_of(plan_->outputs(), output.port), prepared.context->output_shape(output.port));
        }
        prepared_.push_back(std::move(prepared));
        while (buffers_.size() < inputs.size() + outputs.size()) {
            buffers_.emplace_back(device_);
        }
        return prepared_.back();
    }

    /// Makes room for everything and tells the context where it is, unless it knows. Then `addresses_` are those of the inputs, of
    /// the outputs and of the activations.
    void place(Prepared& prepared) {
        addresses_.clear();
        for (const std::vector<Binding>* side : {&prepared.inputs, &prepared.outputs}) {
            for (const Binding& binding : *side) {
                DeviceMemory& buffer = buffers_[addresses_.size()];
                buffer.reserve(binding.tensor.bytes(), name_, "inputs and outputs");
                addresses_.push_back(buffer.address());
            }
        }
        activations_->reserve(prepared.memory, name_, "activations");
        addresses_.push_back(activations_->address());
        if (prepared.bound == addresses_) {
            return;
        }
        prepared.graph = nullptr;
        prepared.bound.clear();  // until all of it is set
        std::size_t index = 0;
        for (const std::vector<Binding>* side : {&prepared.inputs, &prepared.outputs}) {
            for (const Binding& binding : *side) {
                prepared.context->set_address(binding.port, addresses_[index++]);
            }
        }
        prepared.context->set_memory(activations_->address(), activations_->bytes());
        prepared.bound = addresses_;
    }

    void queue(Prepared& prepared) {
        if (prepared.graph == nullptr && prepared.has_run && records_) {
            prepared.graph = recorded(device_, [&] { prepared.context->enqueue(); });
            records_ = prepared.graph != nullptr;
        }
        if (prepared.graph != nullptr) {
            prepared.graph->launch();
        } else {
            prepared.context->enqueue();
            prepared.has_run = true;
        }
    }

    std::string name_;
    std::shared_ptr<const CudaDevice> device_;
    std::shared_ptr<DeviceMemory> activations_;
    std::unique_ptr<Plan> plan_;
    bool records_;
    std::vector<DeviceMemory> buffers_;  // of inputs, then of outputs; all sets of shapes have the same ports in the same order
    std::vector<Prepared> prepared_;
    std::vector<std::uint64_t> addresses_;
};

}  // namespace

std::unique_ptr<Engine> gpu_engine(std::unique_ptr<Plan> plan, std::shared_ptr<const CudaDevice> device,
                                   std::shared_ptr<DeviceMemory> activations, const std::string& name) {
    return std::make_unique<GpuEngine>(std::move(plan), std::move(device), std::move(activations), name);
}

}  // namespace dexport
