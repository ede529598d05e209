// TensorRT; for TensorRT-RTX see tensorrt_rtx_contexts.cpp.
#include "backends/tensorrt_contexts.h"

#include "backends/tensorrt.h"

namespace dexport {
namespace {

class Contexts final : public TensorRtContexts {
public:
    explicit Contexts(nvinfer1::ICudaEngine& engine) : engine_(engine) {}

    std::unique_ptr<nvinfer1::IExecutionContext> make() override {
        constexpr auto by_caller = nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED;
        return std::unique_ptr<nvinfer1::IExecutionContext>(engine_.createExecutionContext(by_caller));
    }

    [[nodiscard]] bool record_graphs() const override { return false; }

private:
    nvinfer1::ICudaEngine& engine_;
};

}  // namespace

std::string tensorrt_format() {
    return "tensorrt";
}

/// Every kernel is in the engine already, so there is nothing to keep in a file.
std::unique_ptr<TensorRtContexts> tensorrt_contexts(nvinfer1::ICudaEngine& engine, const std::string&) {
    return std::make_unique<Contexts>(engine);
}

}  // namespace dexport
