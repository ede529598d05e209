#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>

namespace dexport {

/// Makes the execution contexts of an engine, whose activations lie in memory that they are told of. This is where TensorRT and
/// TensorRT-RTX differ, so each has a source file of its own.
class TensorRtContexts {
public:
    virtual ~TensorRtContexts() = default;

    /// Null: the library refuses; its log says why.
    [[nodiscard]] virtual std::unique_ptr<nvinfer1::IExecutionContext> make() = 0;

    /// Whether contexts record CUDA graphs themselves, so that nobody else should.
    [[nodiscard]] virtual bool record_graphs() const = 0;
};

/// `engine` must live longer. `kernels`: see `TensorRt::open`.
[[nodiscard]] std::unique_ptr<TensorRtContexts> tensorrt_contexts(nvinfer1::ICudaEngine& engine, const std::string& kernels);

}  // namespace dexport
