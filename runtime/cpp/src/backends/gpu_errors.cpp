#include "backends/gpu_errors.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <iterator>

namespace dexport {

std::string memory_text(std::size_t bytes) {
    constexpr double mebibyte = 1024.0 * 1024.0;
    const double mebibytes = static_cast<double>(bytes) / mebibyte;
    char text[32];
    if (mebibytes < 1024) {
        std::snprintf(text, sizeof text, "%.0f MiB", mebibytes);
    } else {
        std::snprintf(text, sizeof text, "%.1f GiB", mebibytes / 1024);
    }
    return text;
}

Error no_room(const std::string& where, const std::string& what, std::size_t needed, std::size_t free) {
    return failure(where, memory_text(needed) + " of GPU memory for " + what, memory_text(free) + " free",
                   "close other programs, release components (--release), or build a smaller bundle");
}

Error misfit(const std::string& where, int sm, const std::string& got) {
    return user_error(where, "an engine for this GPU (SM" + std::to_string(sm) + ")", got, "rebuild the bundle for this machine");
}

void check_sm(const std::string& where, int sm, const std::vector<int>& sms) {
    if (sms.empty() || std::find(sms.begin(), sms.end(), sm) != sms.end()) {
        return;
    }
    std::string built;
    for (const int each : sms) {
        built += (built.empty() ? "SM" : ", SM") + std::to_string(each);
    }
    throw misfit(where, sm, "an engine for " + built);
}

Error load_error(const std::string& where, int sm, const std::string& log, std::size_t bytes, std::size_t free) {
    if (log.find("driver version is insufficient") != std::string::npos) {  // error 35 of CUDA
        return user_error(where, "an NVIDIA driver that is new enough for this TensorRT", log, "install a newer NVIDIA driver");
    }
    std::string letters;  // "OutOfMemory", "out of memory"
    std::copy_if(log.begin(), log.end(), std::back_inserter(letters), [](unsigned char each) { return std::isalpha(each) != 0; });
    std::transform(letters.begin(), letters.end(), letters.begin(), [](unsigned char each) { return std::tolower(each); });
    if (letters.find("outofmemory") != std::string::npos || bytes > free) {
        return no_room(where, "weights", bytes, free);
    }
    return misfit(where, sm, log.empty() ? "a plan that does not load" : log);
}

}  // namespace dexport
