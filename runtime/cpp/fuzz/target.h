#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "error.h"

/// What libFuzzer calls with bytes of its making; each target defines it once.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes);

namespace dexport {

/// Hands a reader what a stranger sent. The errors that it raises on purpose are right answers; all else is a finding.
template <typename Read>
int read_stranger(const std::uint8_t* data, std::size_t bytes, const Read& read) {
    try {
        read(std::string_view(reinterpret_cast<const char*>(data), bytes));
    } catch (const Error&) {
        return 0;
    }
    return 0;
}

}  // namespace dexport
