#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace dexport {

/// The unsigned number that up to 8 bytes spell, the lowest first.
[[nodiscard]] inline std::uint64_t little_endian(std::string_view bytes) {
    std::uint64_t value = 0;
    for (std::size_t index = bytes.size(); index-- > 0;) {
        value = value << 8 | static_cast<unsigned char>(bytes[index]);
    }
    return value;
}

}  // namespace dexport
