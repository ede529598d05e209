#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "file.h"

namespace dexport {

inline constexpr std::size_t max_files = 4097;  ///< 4096 in the manifest and the manifest itself

/// A file's bytes: `bytes` of them from `offset` in `file`, which had `identity` when it was listed.
struct Extent {
    std::filesystem::path file;
    std::uint64_t offset;
    std::uint64_t bytes;
    Identity identity;
};

using Extents = std::map<std::string, Extent, std::less<>>;  ///< path in the bundle -> where it lies

/// Lists a bundle that is a folder. Throws a user error: a link, pipe or device is inside, a name that no bundle has, too many files.
[[nodiscard]] Extents list_folder(const std::filesystem::path& root);

/// Lists a bundle that is a `.dxb`; reads only its directory and the headers of its entries.
///
/// A `.dxb` is a zip of a strict kind, so that weights can be mapped straight out of it and no two readers can see different
/// contents: entries are stored, not compressed, start at multiples of 4096 bytes, follow each other without a gap, and
/// nothing stands before the first or after the end record. Zip64 is read; encryption, links, comments, data descriptors and
/// split archives are refused with a user error. Layout: PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16, 4.5.3.
[[nodiscard]] Extents list_archive(const std::filesystem::path& path);

}  // namespace dexport
