#include "bundle.h"

#include <algorithm>
#include <set>
#include <system_error>
#include <vector>

#include "error.h"
#include "json.h"
#include "sha256.h"
#include "trust.h"

namespace dexport {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t chunk_bytes = 1 << 20, max_read_bytes = 256 << 20;

Error changed(const Extent& extent, const std::string& got) {
    return failure(extent.file.string(), "the file as it was when the bundle was opened", got, "open the bundle again");
}

/// The file that an extent is in, if it still is what was listed.
std::unique_ptr<File> opened(const Extent& extent) {
    std::unique_ptr<File> file;
    try {
        file = std::make_unique<File>(extent.file);
    } catch (const std::system_error& error) {
        if (error.code() == std::errc::no_such_file_or_directory) {
            throw changed(extent, "nothing there");
        }
        throw user_error(extent.file.string(), "a file that can be read", error.code().message(), "check permissions");
    }
    if (file->identity() != extent.identity) {
        throw changed(extent, "another file, or changed contents");
    }
    return file;
}

/// Hands the bytes of an extent to `consume`, read into one small buffer and not through a mapping, which a truncation turns into SIGBUS.
void read_chunks(const Extent& extent, const std::function<void(const char*, std::size_t)>& consume) {
    const std::unique_ptr<File> file = opened(extent);
    std::vector<char> buffer(static_cast<std::size_t>(std::min<std::uint64_t>(chunk_bytes, extent.bytes)));
    for (std::uint64_t done = 0; done < extent.bytes;) {
        const std::size_t wanted = std::min<std::uint64_t>(buffer.size(), extent.bytes - done);
        if (file->read(buffer.data(), wanted, extent.offset + done) != wanted) {
            throw changed(extent, "a shorter file");
        }
        consume(buffer.data(), wanted);
        done += wanted;
    }
}

std::string read_extent(const Extent& extent) {
    std::string text;
    text.reserve(extent.bytes);
    read_chunks(extent, [&](const char* data, std::size_t bytes) { text.append(data, bytes); });
    return text;
}

Extents list(const fs::path& path) {
    const std::string where = path.string();
    if (!fs::exists(path)) {
        throw user_error(where, "a bundle", "nothing there", "check the path or make one with `dexport build`");
    }
    if (fs::is_directory(path)) {
        if (fs::exists(path / "model_index.json")) {
            throw user_error(where, "a bundle", "a diffusers model", "build it first: dexport build " + where + " --target cpu");
        }
        if (!fs::exists(path / manifest_name)) {
            throw user_error(where, std::string("a bundle with ") + manifest_name, "a folder without", "check the path");
        }
        return list_folder(path);
    }
    if (!fs::is_regular_file(path)) {
        throw user_error(where, "a folder or a .dxb file", "something else", "check the path");
    }
    Extents extents = list_archive(path);
    if (extents.count(manifest_name) == 0) {
        throw user_error(where, std::string("a bundle with ") + manifest_name, "an archive without", get_again);
    }
    return extents;
}

}  // namespace

Bundle::Bundle(const fs::path& path, Verify verify, const ReadProgress& progress, Trust trust)
    : path_(path), trust_(trust), verified_(verify == Verify::full) {
    try {
        extents_ = list(path);
        const auto found = extents_.find(manifest_name);
        const std::string where = name(manifest_name);
        if (found->second.bytes > max_manifest_bytes) {
            throw user_error(where, "at most " + std::to_string(max_manifest_bytes) + " bytes", std::to_string(found->second.bytes),
                             get_again);
        }
        manifest_ = manifest_from_json(read_extent(found->second), where);
        native_ = manifest_.native_files();
        extents_.erase(found);
        check_files();
        if (verified_) {
            check_hashes(progress);
        }
    } catch (const std::system_error& error) {
        throw user_error(path.string(), "files that can be read", error.code().message(), "check permissions and the disk");
    }
}

std::string Bundle::name(const std::string& relative) const {
    return path_.string() + ": " + shown(relative);
}

void Bundle::check_files() const {
    std::set<std::string, std::less<>> listed;
    for (const auto& [relative, entry] : manifest_.files) {
        listed.insert(relative);
        const auto found = extents_.find(relative);
        const std::string expected = std::to_string(entry.bytes) + " bytes";
        if (found == extents_.end()) {
            throw user_error(name(relative), "a file of " + expected, "no such file", get_again);
        }
        if (found->second.bytes != entry.bytes) {
            throw user_error(name(relative), expected, std::to_string(found->second.bytes), get_again);
        }
    }
    for (const auto& item : extents_) {
        if (listed.count(item.first) == 0) {
            throw user_error(name(item.first), std::string("only the files that ") + manifest_name + " lists", "one more",
                             "delete it or get the bundle again");
        }
    }
}

void Bundle::check_hashes(const ReadProgress& progress) const {
    std::uint64_t total = 0, done = 0;
    for (const auto& item : manifest_.files) {
        total += item.second.bytes;
    }
    for (const auto& [relative, entry] : manifest_.files) {
        check_hash(relative, entry.sha256, [&, &file = relative](std::size_t bytes) {
            done += bytes;
            if (progress) {
                progress(done, total, file);
            }
        });
    }
}

void Bundle::check_hash(const std::string& relative, const std::string& sha256, const std::function<void(std::size_t)>& on_bytes) const {
    Sha256 hash;
    read_chunks(extent(relative), [&](const char* data, std::size_t bytes) {
        hash.update(data, bytes);
        if (on_bytes) {
            on_bytes(bytes);
        }
    });
    if (const std::string got = hash.hexadecimal(); got != sha256) {
        throw user_error(name(relative), "sha256 " + sha256, got, get_again);
    }
}

const Extent& Bundle::extent(const std::string& relative) const {
    const auto found = extents_.find(relative);
    if (found == extents_.end()) {
        throw user_error(name(relative), "a file of the bundle", "none of that name", get_again);
    }
    return found->second;
}

/// Where a file lies, if it may be handed out.
const Extent& Bundle::released(const std::string& relative) const {
    const Extent& place = extent(relative);
    if (trust_ == Trust::all || native_.count(relative) == 0) {
        return place;
    }
    const std::string& sha256 = manifest_.file(relative)->sha256;
    if (trusted_hashes(default_trust_file()).count(sha256) == 0) {
        throw user_error(name(relative), "machine code that was built on this machine or that you trust", "code from elsewhere",
                         "build it here with `dexport finalize`, or pass --trust (trust_code) if you know who made it");
    }
    if (!verified_) {
        check_hash(relative, sha256);
    }
    return place;
}

std::shared_ptr<const Mapping> Bundle::map(const std::string& relative) const {
    const Extent& place = released(relative);
    return std::make_shared<const Mapping>(*opened(place), place.offset, place.bytes);
}

std::string Bundle::read(const std::string& relative) const {
    const Extent& place = released(relative);
    if (place.bytes > max_read_bytes) {
        throw user_error(name(relative), "at most " + std::to_string(max_read_bytes) + " bytes", std::to_string(place.bytes), get_again);
    }
    return read_extent(place);
}

MappedTensors Bundle::tensors(const std::string& relative) const {
    std::shared_ptr<const Mapping> mapping = map(relative);
    Tensors found = tensors_from_bytes(reinterpret_cast<std::byte*>(mapping->data()), mapping->size(), name(relative));
    return {std::move(mapping), std::move(found)};
}

}  // namespace dexport
