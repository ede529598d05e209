#pragma once

#include <memory>
#include <string>

#include "engine.h"
#include "file.h"

namespace dexport {

/// Compiles IR, whose weights are mapped from the bundle, and runs it on the CPU. Once the plugin has packed them, their pages go
/// back to the system; what it still reads comes from the file again.
///
/// The plugin is fastest with static shapes, so the model is compiled for each combination of input shapes that comes, once.
/// Quantized models: see `int8_is_exact`.
///
/// Args:
///     xml: the topology.
///     weights: mapped writable, because OpenVINO refuses read-only memory.
///     precision: of the bundle, "fp32", "fp16" or "bf16". OpenVINO would silently choose bf16 otherwise.
///     cache: folder for compiled models; empty for none.
///     name: for errors.
///
/// Throws a failure: OpenVINO cannot read the model.
[[nodiscard]] std::unique_ptr<Engine> open_openvino(std::string xml, std::shared_ptr<const Mapping> weights, const std::string& precision,
                                                    const std::string& cache, const std::string& name);

}  // namespace dexport
