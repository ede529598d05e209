// In place of tensorrt.cpp where the library is built without it.
#include "backends/tensorrt.h"
#include "error.h"

namespace dexport {

std::string tensorrt_format() {
    return {};
}

std::shared_ptr<TensorRt> start_tensorrt() {
    throw user_error("TensorRT", "a build of dexport with it", "this one, which has none",
                     "build the library with the preset tensorrt or tensorrt-rtx");
}

}  // namespace dexport
