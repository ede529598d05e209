#pragma once

#include <cstdint>

namespace dexport {

/// How many bytes of weights that can be streamed from the host may stay on the device: all if they fit beside the activations and a
/// reserve for copies and kernels, else what is left; never below 0, where every weight travels at every run.
[[nodiscard]] std::int64_t resident_weights(std::int64_t streamable, std::int64_t free, std::int64_t activations);

}  // namespace dexport
