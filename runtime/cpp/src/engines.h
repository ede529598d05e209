#pragma once

#include <memory>
#include <string>

#include "backends/tensorrt.h"
#include "bundle.h"
#include "engine.h"

namespace dexport {

/// Throws a user error unless this build of the library runs every component of a bundle.
void check_formats(const Bundle& bundle);

/// What the engines of a pipeline share, from the first one that needs it.
struct Backends {
    std::shared_ptr<TensorRt> tensorrt;
};

/// The engine of a component for a size. Throws a user error: the bundle lacks the size, its machine code is not trusted or is for
/// another machine; a failure: the backend cannot load it.
[[nodiscard]] std::unique_ptr<Engine> open_engine(const Bundle& bundle, const std::string& component, const Size& size, Backends& backends);

}  // namespace dexport
