#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "error.h"

namespace dexport {

/// "1.5 GiB", "12 MiB".
[[nodiscard]] std::string memory_text(std::size_t bytes);

/// There is less device memory than `what` needs; a failure.
[[nodiscard]] Error no_room(const std::string& where, const std::string& what, std::size_t needed, std::size_t free);

/// An engine is not for this GPU or this TensorRT; a user error. `got`: what it is for, or what TensorRT says.
[[nodiscard]] Error misfit(const std::string& where, int sm, const std::string& got);

/// Refuses an engine that was built for other GPUs; `sms` are compute capabilities times ten, none means any.
void check_sm(const std::string& where, int sm, const std::vector<int>& sms);

/// Why TensorRT did not load an engine of `bytes`: the driver is older than its CUDA, or there is no room, if the log says so or the
/// device has less; else a misfit.
[[nodiscard]] Error load_error(const std::string& where, int sm, const std::string& log, std::size_t bytes, std::size_t free);

}  // namespace dexport
