#pragma once

#include <functional>
#include <memory>

#include "backends/cuda_driver.h"

namespace dexport {

/// Work on a GPU that was recorded once and is launched as a whole, which saves the launches of its hundreds of kernels.
class CudaGraph {
public:
    CudaGraph(std::shared_ptr<const CudaDevice> device, void* graph) : device_(std::move(device)), graph_(graph) {}
    ~CudaGraph();
    CudaGraph(const CudaGraph&) = delete;
    CudaGraph& operator=(const CudaGraph&) = delete;

    /// Queues it.
    void launch() const { device_->launch(graph_); }

private:
    std::shared_ptr<const CudaDevice> device_;
    void* graph_;
};

/// Records what `enqueue` queues on the device's stream, without doing it. Null if that cannot be recorded: it throws an `Error`, as
/// TensorRT says no to what is forbidden meanwhile, or the driver refuses.
[[nodiscard]] std::unique_ptr<CudaGraph> recorded(const std::shared_ptr<const CudaDevice>& device, const std::function<void()>& enqueue);

}  // namespace dexport
