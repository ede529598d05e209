#include "backends/weight_streaming.h"

#include <algorithm>

namespace dexport {

std::int64_t resident_weights(std::int64_t streamable, std::int64_t free, std::int64_t activations) {
    constexpr std::int64_t reserve = std::int64_t{256} << 20;  // bytes: inputs, outputs, and what loading kernels takes
    return std::clamp<std::int64_t>(free - activations - reserve, 0, streamable);
}

}  // namespace dexport
