#include "backends/tensorrt_log.h"

#include <new>
#include <sstream>
#include <utility>

namespace dexport {

void TensorRtLog::log(Severity severity, const nvinfer1::AsciiChar* message) noexcept {
    if (severity != Severity::kINTERNAL_ERROR && severity != Severity::kERROR) {
        return;
    }
    try {
        const std::lock_guard<std::mutex> lock(mutex_);
        errors_ += (errors_.empty() ? "" : "; ") + std::string(message);
    } catch (const std::bad_alloc&) {  // the call that fails says so all the same
    }
}

std::string TensorRtLog::take() {
    std::string errors;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        errors = std::exchange(errors_, {});
    }
    std::istringstream words(errors);
    std::string line;
    for (std::string word; words >> word;) {
        line += (line.empty() ? "" : " ") + word;
    }
    return line;
}

}  // namespace dexport
