#pragma once

#include "backends/tensorrt.h"
#include "bundle.h"

namespace dexport {

/// Loads the libraries of a bundle's plugins into the runtime that will read its engines; to be called before the first of them.
///
/// Not into the registry of the process: that has room for one plugin of a name, and two bundles may have come with different ones.
///
/// Throws a user error: a library is not trusted, has changed, or is for another GPU or another TensorRT; a failure: TensorRT does not
/// take it, or there is no room to unpack it.
void load_plugins(const Bundle& bundle, TensorRt& tensorrt);

}  // namespace dexport
