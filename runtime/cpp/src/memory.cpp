#include "memory.h"

#include <sys/resource.h>

#include <utility>

namespace dexport {

OwnedTensor owned_tensor(Dtype dtype, Shape shape) {
    OwnedTensor owned{{dtype, std::move(shape), nullptr}, {}};
    owned.memory = Memory(owned.tensor.bytes());
    owned.tensor.data = owned.memory.data();
    return owned;
}

std::size_t peak_memory_bytes() {
    struct rusage usage {};
    constexpr std::size_t kibibyte = 1024;  // Linux counts in these
    return ::getrusage(RUSAGE_SELF, &usage) == 0 ? static_cast<std::size_t>(usage.ru_maxrss) * kibibyte : 0;
}

}  // namespace dexport
