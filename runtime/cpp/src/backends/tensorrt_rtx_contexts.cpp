// TensorRT-RTX, which compiles the last kernels on the machine that runs them; for TensorRT see tensorrt_contexts.cpp.
#include <exception>
#include <fstream>
#include <iterator>
#include <string_view>

#include "atomic_file.h"
#include "backends/tensorrt.h"
#include "backends/tensorrt_contexts.h"

namespace dexport {
namespace {

std::string content_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

class Contexts final : public TensorRtContexts {
public:
    Contexts(nvinfer1::ICudaEngine& engine, std::string kernels)
        : engine_(engine), path_(std::move(kernels)), config_(engine.createRuntimeConfig()) {
        if (config_ == nullptr) {
            return;
        }
        config_->setExecutionContextAllocationStrategy(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED);
        // Kernels for the sizes at hand before the first run, not at some moment between two runs: the same seed gives the same bits.
        config_->setDynamicShapesKernelSpecializationStrategy(nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
        config_->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE);
        cache_.reset(path_.empty() ? nullptr : config_->createRuntimeCache());
        if (cache_ != nullptr) {
            loaded_ = content_of(path_);
            if (!loaded_.empty()) {
                cache_->deserialize(loaded_.data(), loaded_.size());  // says no to a cache from elsewhere: it is then made anew
            }
            config_->setRuntimeCache(*cache_);
        }
    }

    ~Contexts() override {
        try {
            keep_kernels();
        } catch (const std::exception&) {  // they are compiled again at the next start
        }
    }
    Contexts(const Contexts&) = delete;
    Contexts& operator=(const Contexts&) = delete;

    std::unique_ptr<nvinfer1::IExecutionContext> make() override {
        return std::unique_ptr<nvinfer1::IExecutionContext>(config_ == nullptr ? nullptr : engine_.createExecutionContext(config_.get()));
    }

    [[nodiscard]] bool record_graphs() const override { return true; }

private:
    void keep_kernels() const {
        if (cache_ == nullptr) {
            return;
        }
        const std::unique_ptr<nvinfer1::IHostMemory> compiled(cache_->serialize());
        if (compiled == nullptr) {
            return;
        }
        const std::string_view content(static_cast<const char*>(compiled->data()), compiled->size());
        if (content != loaded_) {
            write_atomically(path_, {content});
        }
    }

    nvinfer1::ICudaEngine& engine_;
    std::string path_, loaded_;
    std::unique_ptr<nvinfer1::IRuntimeConfig> config_;
    std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
};

}  // namespace

std::string tensorrt_format() {
    return "tensorrt-rtx";
}

std::unique_ptr<TensorRtContexts> tensorrt_contexts(nvinfer1::ICudaEngine& engine, const std::string& kernels) {
    return std::make_unique<Contexts>(engine, kernels);
}

}  // namespace dexport
