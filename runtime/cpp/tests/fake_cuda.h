#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "backends/cuda_driver.h"

namespace dexport {

/// How the library in place of the NVIDIA driver behaves, and what it has seen.
struct FakeCuda {
    int init_code = 0;
    int devices = 1;
    std::size_t total = 1 << 20, used = 0;                       ///< bytes of device memory
    bool refuses_capture = false;                                ///< cuStreamBeginCapture fails
    bool breaks_capture = false;                                 ///< cuStreamEndCapture fails, as after a forbidden call
    int contexts = 0, streams = 0, graphs = 0, allocations = 0;  ///< that exist now
    int launches = 0;                                            ///< of graphs
};

/// That library: sets it back to its beginning.
FakeCuda& fake_cuda();

/// Its device.
std::shared_ptr<const CudaDevice> fake_device();

/// Does work on its stream, or records it while that is recorded.
void submit(const std::function<void()>& work);

}  // namespace dexport
