#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dexport/dexport.h"

namespace player {

/// Latents [count, ...] from a .npy file.
class NoiseFile {
public:
    /// Throws UserError for a file that is none, or whose array is no plain array of numbers.
    explicit NoiseFile(const std::string& path);

    /// float32; valid as long as this object.
    [[nodiscard]] dexport_tensor tensor() const;

private:
    std::vector<std::int64_t> shape_;
    std::vector<float> values_;
};

}  // namespace player
