#pragma once

#include <NvInferRuntime.h>

#include <mutex>
#include <string>

namespace dexport {

/// Keeps the errors of TensorRT, whose failing calls only return false or null.
class TensorRtLog final : public nvinfer1::ILogger {
public:
    /// Comes from any thread: kernels are compiled in the background.
    void log(Severity severity, const nvinfer1::AsciiChar* message) noexcept override;

    /// The errors since the last call, as one line; empty if there were none.
    [[nodiscard]] std::string take();

private:
    std::mutex mutex_;
    std::string errors_;
};

}  // namespace dexport
