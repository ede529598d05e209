#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "archive.h"
#include "file.h"
#include "manifest.h"
#include "tensor_file.h"

namespace dexport {

/// How much of a bundle is compared with its manifest: the sha256 of every file (about 1 s per GB), or only their sizes.
enum class Verify { full, sizes };

/// Whose machine code is handed out: what the user's trust file names, or all of it.
enum class Trust { own, all };

/// Called with bytes done, bytes in all and the file being read.
using ReadProgress = std::function<void(std::uint64_t, std::uint64_t, const std::string&)>;

/// The tensors of a file that stays mapped as long as they are needed.
struct MappedTensors {
    std::shared_ptr<const Mapping> mapping;
    Tensors tensors;
};

/// An opened bundle, a folder or a `.dxb`: hands out its files and trusts nothing that is in it.
///
/// Opening checks the manifest, that exactly the files it lists are there with the sizes and, unless told otherwise, the
/// sha256 it gives. Keeps no file open: whoever replaces or edits a bundle in use is noticed at the next access.
/// Immutable: any number of threads may use one.
class Bundle {
public:
    /// Throws a user error: it is no bundle, is damaged, hostile, or needs a newer dexport; a failure: it changed while it was read.
    explicit Bundle(const std::filesystem::path& path, Verify verify = Verify::full, const ReadProgress& progress = {},
                    Trust trust = Trust::own);

    [[nodiscard]] const Manifest& manifest() const { return manifest_; }
    [[nodiscard]] std::string path() const { return path_.string(); }

    /// "path: file", for errors.
    [[nodiscard]] std::string name(const std::string& relative) const;

    /// Maps a file, also from inside a `.dxb`, without reading or copying it. Throws a user error: machine code that the user
    /// does not trust.
    [[nodiscard]] std::shared_ptr<const Mapping> map(const std::string& relative) const;

    /// Copies a small file, of at most 256 MiB. Throws like `map`.
    [[nodiscard]] std::string read(const std::string& relative) const;

    /// The tensors of a safetensors file.
    [[nodiscard]] MappedTensors tensors(const std::string& relative) const;

private:
    [[nodiscard]] const Extent& extent(const std::string& relative) const;
    [[nodiscard]] const Extent& released(const std::string& relative) const;
    void check_files() const;
    void check_hashes(const ReadProgress& progress) const;
    void check_hash(const std::string& relative, const std::string& sha256, const std::function<void(std::size_t)>& on_bytes = {}) const;

    std::filesystem::path path_;
    Extents extents_;
    Manifest manifest_;
    std::set<std::string> native_;  ///< paths of machine code
    Trust trust_;
    bool verified_;  ///< the sha256 of every file was compared
};

}  // namespace dexport
