#pragma once

#include <memory>
#include <string>

#include "bundle.h"
#include "engine.h"

namespace dexport {

/// Throws a user error unless this build of the library runs every component of a bundle.
void check_formats(const Bundle& bundle);

/// The engine of a component for a size. Throws a user error: the bundle lacks the size; a failure: the backend cannot load it.
[[nodiscard]] std::unique_ptr<Engine> open_engine(const Bundle& bundle, const std::string& component, const Size& size);

}  // namespace dexport
