#pragma once

#include <cstddef>

namespace dexport {

/// How often this process has called operator new so far; the tests' executable counts.
[[nodiscard]] std::size_t allocations();

}  // namespace dexport
