#include "progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace player {
namespace {

constexpr std::size_t bar_characters = 40;
constexpr const char* wipe = "\r\x1b[2K";

std::string bar(double fraction) {
    const auto full = static_cast<std::size_t>(std::clamp(fraction, 0.0, 1.0) * bar_characters);
    std::string text;
    for (std::size_t place = 0; place < bar_characters; ++place) {
        text += place < full ? "━" : " ";
    }
    return text;
}

}  // namespace

Progress::Progress() : terminal_(isatty(STDERR_FILENO) == 1), start_(std::chrono::steady_clock::now()) {}

Progress::~Progress() {
    if (terminal_) {
        std::fputs(wipe, stderr);
    }
}

void Progress::report(const std::string& stage, std::optional<double> fraction) {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    if (terminal_) {
        std::fprintf(stderr, "%s%s %6.1f s %s", wipe, bar(fraction.value_or(0)).c_str(), seconds, stage.c_str());
        std::fflush(stderr);
    } else if (stage != stage_) {
        std::fprintf(stderr, "[%7.1f s] %s\n", seconds, stage.c_str());
    }
    stage_ = stage;
}

}  // namespace player
