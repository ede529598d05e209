#pragma once

#include <filesystem>
#include <string_view>
#include <vector>

namespace dexport {

/// Writes a file, the parts one after another, completely or not at all: beside its place first, then by a rename.
///
/// Throws a failure if the disk is full, and a user error if the file cannot be written for another reason.
void write_atomically(const std::filesystem::path& path, const std::vector<std::string_view>& parts);

}  // namespace dexport
