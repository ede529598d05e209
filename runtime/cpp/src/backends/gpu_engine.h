#pragma once

#include <memory>
#include <string>

#include "backends/cuda_driver.h"
#include "backends/device_memory.h"
#include "backends/plan.h"
#include "engine.h"

namespace dexport {

/// Runs a plan on a GPU: copies inputs to the device, runs, copies outputs back.
///
/// Each set of input shapes gets a context. Its first run is queued kernel by kernel; the second is recorded as a CUDA graph, which is
/// launched from then on, until a buffer moves. Where recording fails, runs are queued as the first one was.
///
/// Args:
///     activations: memory that all engines of a pipeline share, as only one of them runs at a time; grows to the largest.
///     name: for errors.
[[nodiscard]] std::unique_ptr<Engine> gpu_engine(std::unique_ptr<Plan> plan, std::shared_ptr<const CudaDevice> device,
                                                 std::shared_ptr<DeviceMemory> activations, const std::string& name);

}  // namespace dexport
