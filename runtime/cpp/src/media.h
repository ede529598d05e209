#pragma once

#include <filesystem>
#include <vector>

#include "tensor.h"

namespace dexport {

/// Refuses a name that `save` could not write to, before the work of making the pictures.
///
/// Throws a user error: an unknown suffix, or no such folder. There is no video encoder here: a video becomes pictures.
void check_output(const std::filesystem::path& path, bool video);

/// Writes pictures uint8 [count, height, width, 3], or videos [count, frames, height, width, 3], both RGB.
///
/// A .npy file takes all of them. Several pictures become several files, out.png as out-0.png, out-1.png and so on; so do the
/// frames of a video, behind its own number if there are several. Each file is written completely or not at all. Returns the files.
/// Throws a user error: what `check_output` refuses, or the folder cannot be written to; a failure: the disk is full.
std::vector<std::filesystem::path> save(const Tensor& pictures, const std::filesystem::path& path);

/// out.png -> out-0.png, out-1.png, ...; with as many digits as the last one has. One alone keeps its name.
[[nodiscard]] std::vector<std::filesystem::path> numbered(const std::filesystem::path& path, std::size_t count);

}  // namespace dexport
