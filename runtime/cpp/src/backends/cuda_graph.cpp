#include "backends/cuda_graph.h"

#include "error.h"

namespace dexport {

CudaGraph::~CudaGraph() {
    if (device_->try_use()) {
        device_->destroy(graph_);
    }
}

std::unique_ptr<CudaGraph> recorded(const std::shared_ptr<const CudaDevice>& device, const std::function<void()>& enqueue) {
    if (!device->begin_capture()) {
        return nullptr;
    }
    bool queued = true;
    try {
        enqueue();
    } catch (const Error&) {
        queued = false;
    }
    void* graph = device->end_capture(queued);
    return graph == nullptr ? nullptr : std::make_unique<CudaGraph>(device, graph);
}

}  // namespace dexport
