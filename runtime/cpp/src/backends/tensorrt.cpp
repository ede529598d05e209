#include "backends/tensorrt.h"

#include <NvInferRuntime.h>

#include <algorithm>
#include <optional>

#include "backends/gpu_engine.h"
#include "backends/gpu_errors.h"
#include "backends/tensorrt_contexts.h"
#include "backends/tensorrt_log.h"
#include "backends/weight_streaming.h"
#include "error.h"

namespace dexport {
namespace {

/// What engines need as long as they live.
struct Session {
    std::shared_ptr<const CudaDevice> device;
    TensorRtLog log;
    std::unique_ptr<nvinfer1::IRuntime> runtime;

    [[nodiscard]] cudaStream_t stream() const { return static_cast<cudaStream_t>(device->stream()); }

    /// Throws what TensorRT has said if it did not do what it was asked for.
    void expect(bool done, const std::string& where, const std::string& what) {
        if (!done) {
            const std::string said = log.take();
            throw failure(where, "TensorRT to accept " + what, said.empty() ? "a refusal without a reason" : said,
                          "rebuild the bundle for this machine");
        }
    }
};

/// The type that tensors here have for it; none for formats of 8 and 4 bits.
std::optional<Dtype> dtype_of(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT:
            return Dtype::float32;
        case nvinfer1::DataType::kHALF:
            return Dtype::float16;
        case nvinfer1::DataType::kBF16:
            return Dtype::uint16;
        case nvinfer1::DataType::kINT8:
            return Dtype::int8;
        case nvinfer1::DataType::kUINT8:
            return Dtype::uint8;
        case nvinfer1::DataType::kINT32:
            return Dtype::int32;
        case nvinfer1::DataType::kINT64:
            return Dtype::int64;
        case nvinfer1::DataType::kBOOL:
            return Dtype::boolean;
        default:
            return std::nullopt;
    }
}

Shape shape_of(const nvinfer1::Dims& dims) {
    return {dims.d, dims.d + std::max(dims.nbDims, 0)};
}

nvinfer1::Dims dims_of(const Shape& shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), dims.d);
    return dims;
}

class Context final : public PlanContext {
public:
    Context(std::shared_ptr<Session> session, std::unique_ptr<nvinfer1::IExecutionContext> context, std::string name)
        : session_(std::move(session)), context_(std::move(context)), name_(std::move(name)) {}

    void set_shapes(int profile, const std::vector<Binding>& inputs) {
        if (context_->getOptimizationProfile() != profile) {
            const bool queued = context_->setOptimizationProfileAsync(profile, session_->stream());
            session_->expect(queued, name_, "profile " + std::to_string(profile));
            session_->device->wait();
        }
        for (const Binding& input : inputs) {
            session_->expect(context_->setInputShape(input.port.c_str(), dims_of(input.tensor.shape)), name_,
                             "shape " + shape_text(input.tensor.shape) + " for " + input.port);
        }
        session_->expect(context_->inferShapes(0, nullptr) == 0, name_, "these shapes");
    }

    Shape output_shape(const std::string& output) override { return shape_of(context_->getTensorShape(output.c_str())); }

    void set_address(const std::string& port, std::uint64_t address) override {
        session_->expect(context_->setTensorAddress(port.c_str(), reinterpret_cast<void*>(address)), name_, "an address for " + port);
    }

    void set_memory(std::uint64_t address, std::size_t bytes) override {
        context_->setDeviceMemoryV2(reinterpret_cast<void*>(address), static_cast<std::int64_t>(bytes));
    }

    void enqueue() override { session_->expect(context_->enqueueV3(session_->stream()), name_, "the start of the engine"); }

private:
    std::shared_ptr<Session> session_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::string name_;
};

class LoadedPlan final : public Plan {
public:
    LoadedPlan(std::shared_ptr<Session> session, std::unique_ptr<nvinfer1::ICudaEngine> engine, const std::string& kernels,
               std::string name)
        : session_(std::move(session)), engine_(std::move(engine)), name_(std::move(name)) {
        for (std::int32_t index = 0; index < engine_->getNbIOTensors(); ++index) {
            const char* port = engine_->getIOTensorName(index);
            const bool is_input = engine_->getTensorIOMode(port) == nvinfer1::TensorIOMode::kINPUT;
            (is_input ? inputs_ : outputs_).push_back(port_of(port));
        }
        for (std::int32_t index = 0; index < engine_->getNbOptimizationProfiles(); ++index) {
            profiles_.push_back(profile_at(index));
        }
        share_weights();
        contexts_ = tensorrt_contexts(*engine_, kernels);
    }

    [[nodiscard]] const std::vector<PlanPort>& inputs() const override { return inputs_; }
    [[nodiscard]] const std::vector<PlanPort>& outputs() const override { return outputs_; }
    [[nodiscard]] const std::vector<Profile>& profiles() const override { return profiles_; }
    [[nodiscard]] std::size_t memory(int profile) const override {
        return static_cast<std::size_t>(std::max<std::int64_t>(engine_->getDeviceMemorySizeForProfileV2(profile), 0));
    }
    [[nodiscard]] bool can_be_recorded() const override { return !streams_ && !contexts_->record_graphs(); }

    [[nodiscard]] std::unique_ptr<PlanContext> context(int profile, const std::vector<Binding>& inputs) override {
        std::unique_ptr<nvinfer1::IExecutionContext> made = contexts_->make();
        session_->expect(made != nullptr, name_, "an execution context");
        auto context = std::make_unique<Context>(session_, std::move(made), name_);
        context->set_shapes(profile, inputs);
        return context;
    }

private:
    [[nodiscard]] PlanPort port_of(const char* port) const {
        if (engine_->getTensorLocation(port) != nvinfer1::TensorLocation::kDEVICE) {
            throw unusable(std::string(port) + ", which holds a shape, on the host");
        }
        const nvinfer1::DataType type = engine_->getTensorDataType(port);
        const std::optional<Dtype> dtype = dtype_of(type);
        if (!dtype) {
            throw unusable(std::string(port) + " in TensorRT's type " + std::to_string(static_cast<int>(type)));
        }
        return {port, *dtype, shape_of(engine_->getTensorShape(port))};
    }

    [[nodiscard]] Error unusable(const std::string& got) const {
        return failure(name_, "inputs and outputs of at least 8 bits in GPU memory", got,
                       "export the component with fp16, bf16 or fp32 inputs and outputs");
    }

    [[nodiscard]] Profile profile_at(std::int32_t index) const {
        Profile profile;
        for (const PlanPort& input : inputs_) {
            const auto bound = [&](nvinfer1::OptProfileSelector which) {
                return shape_of(engine_->getProfileShape(input.name.c_str(), index, which));
            };
            const bool is_free = std::find(input.shape.begin(), input.shape.end(), -1) != input.shape.end();
            profile[input.name] = is_free ? Range{bound(nvinfer1::OptProfileSelector::kMIN), bound(nvinfer1::OptProfileSelector::kMAX)}
                                          : Range{input.shape, input.shape};
        }
        return profile;
    }

    /// Leaves on the host what does not fit on the device, where the engine was built for that. Before the first context: after
    /// it, TensorRT changes nothing.
    void share_weights() {
        const std::int64_t streamable = engine_->getStreamableWeightsSize();
        if (streamable <= 0) {
            return;
        }
        session_->expect(engine_->setWeightStreamingBudgetV2(0), name_, "weights that stay on the host");
        const auto free = static_cast<std::int64_t>(session_->device->memory().free);
        const std::int64_t resident = resident_weights(streamable, free, engine_->getDeviceMemorySizeV2());
        session_->expect(engine_->setWeightStreamingBudgetV2(resident), name_,
                         memory_text(static_cast<std::size_t>(resident)) + " of weights on the device");
        streams_ = resident < streamable;
    }

    std::shared_ptr<Session> session_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::string name_;
    std::vector<PlanPort> inputs_, outputs_;
    std::vector<Profile> profiles_;
    std::unique_ptr<TensorRtContexts> contexts_;
    bool streams_ = false;
};

class Library final : public TensorRt {
public:
    Library() : session_(std::make_shared<Session>()) {
        session_->device = std::make_shared<const CudaDevice>();
        session_->runtime.reset(nvinfer1::createInferRuntime(session_->log));
        if (session_->runtime == nullptr) {
            throw failure("TensorRT", "it to start", session_->log.take(), "check that driver, CUDA and TensorRT fit together");
        }
    }

    [[nodiscard]] int sm() const override { return session_->device->sm(); }

    [[nodiscard]] std::string version() const override {
        return std::to_string(getInferLibMajorVersion()) + "." + std::to_string(getInferLibMinorVersion()) + "." +
               std::to_string(getInferLibPatchVersion());
    }

    [[nodiscard]] std::string load_plugin(const std::string& path) override {
        static_cast<void>(session_->log.take());
        if (session_->runtime->getPluginRegistry().loadLibrary(path.c_str()) != nullptr) {
            return {};
        }
        const std::string said = session_->log.take();
        return said.empty() ? "a refusal without a reason" : said;
    }

    [[nodiscard]] std::unique_ptr<Engine> open(const std::shared_ptr<const Mapping>& plan, const std::vector<int>& sms,
                                               const std::string& kernels, const std::string& name) override {
        const std::shared_ptr<const CudaDevice>& device = session_->device;
        check_sm(name, device->sm(), sms);
        device->use();
        static_cast<void>(session_->log.take());
        std::unique_ptr<nvinfer1::ICudaEngine> engine(session_->runtime->deserializeCudaEngine(plan->data(), plan->size()));
        plan->forget_pages();
        if (engine == nullptr) {
            throw load_error(name, device->sm(), session_->log.take(), plan->size(), device->memory().free);
        }
        std::shared_ptr<DeviceMemory> activations = activations_.lock();
        if (activations == nullptr) {
            activations = std::make_shared<DeviceMemory>(device);
            activations_ = activations;
        }
        return gpu_engine(std::make_unique<LoadedPlan>(session_, std::move(engine), kernels, name), device, activations, name);
    }

private:
    std::shared_ptr<Session> session_;
    std::weak_ptr<DeviceMemory> activations_;  // goes with the last engine, and comes again in the size of those that follow
};

}  // namespace

std::shared_ptr<TensorRt> start_tensorrt() {
    return std::make_shared<Library>();
}

}  // namespace dexport
