#pragma once

#include <filesystem>
#include <set>
#include <string>

namespace dexport {

/// `dexport/trusted-code` in the user's configuration folder: $XDG_CONFIG_HOME or ~/.config.
[[nodiscard]] std::filesystem::path default_trust_file();

/// Which machine code the user trusts: the sha256 values in `file`, as the Python package writes them when it builds engines; none
/// if there is no such file.
///
/// Throws a user error: others can write to the file, it cannot be read, or a line is neither empty, a comment, nor a sha256 and
/// what it is of.
[[nodiscard]] std::set<std::string> trusted_hashes(const std::filesystem::path& file);

}  // namespace dexport
