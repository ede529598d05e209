#include "archive.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <set>
#include <string_view>
#include <system_error>
#include <vector>

#include "error.h"
#include "json.h"
#include "little_endian.h"
#include "manifest.h"

namespace dexport {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t alignment = 4096;  // bytes: the page size of the devices; larger pages are handled when mapping
constexpr std::size_t max_folders = 4096, max_directory_bytes = 2 << 20;
constexpr std::size_t local_bytes = 30, central_bytes = 46, end_bytes = 22, end64_bytes = 56, locator64_bytes = 20;
constexpr std::uint64_t in_zip64 = 0xFFFFFFFF, utf8_name_flag = 0x800;
constexpr const char* repack = "get the bundle again or rebuild it with a .dxb output";

struct Entry {
    std::string name;
    std::uint64_t header;  // offset of the local header
    std::uint64_t bytes;
};

struct Directory {
    std::uint64_t start, bytes, count;
};

Error malformed(const std::string& where, const std::string& expected, const std::string& got) {
    return user_error(where, expected, got, repack);
}

Error kind_error(const std::string& where, unsigned mode) {
    const char* kind = S_ISLNK(mode) ? "a symbolic link" : S_ISDIR(mode) ? "a folder" : "a pipe, socket or device";
    return user_error(where, "a regular file", kind, "copy the bundle with its files in place of links or get it again");
}

Error too_many(const std::string& where) {
    return user_error(where, "at most " + std::to_string(max_files) + " files", "more", repack);
}

std::string at_byte(const std::string& what, std::uint64_t offset) {
    return what + std::to_string(offset);
}

/// The number of `bytes` bytes at `offset`.
std::uint64_t number(std::string_view data, std::size_t offset, std::size_t bytes) {
    return little_endian(data.substr(offset, bytes));
}

/// Reads the pieces of one archive that say where its entries lie.
class Archive {
public:
    Archive(const File& file, std::string where) : file_(file), where_(std::move(where)) {}

    [[nodiscard]] std::string read(std::int64_t offset, std::size_t count, const std::string& where) const {
        std::string data(count, '\0');
        data.resize(offset < 0 ? 0 : file_.read(data.data(), count, static_cast<std::uint64_t>(offset)));
        if (data.size() != count) {
            const std::string expected = std::to_string(count) + " bytes at byte " + std::to_string(offset);
            throw malformed(where, expected, std::to_string(data.size()));
        }
        return data;
    }

    [[nodiscard]] Directory find_directory() const {
        const std::uint64_t size = file_.size();
        if (size < end_bytes) {
            throw malformed(where_, "a zip of at least " + std::to_string(end_bytes) + " bytes", std::to_string(size) + " bytes");
        }
        std::uint64_t end_at = size - end_bytes;
        const std::string end = read(static_cast<std::int64_t>(end_at), end_bytes, where_);
        if (end.compare(0, 4, "PK\5\6") != 0 || number(end, 20, 2) != 0) {
            throw malformed(where_, "a zip's end record in the last 22 bytes", "something else: truncated, or not a .dxb");
        }
        std::uint64_t disk = number(end, 4, 2), first_disk = number(end, 6, 2), on_disk = number(end, 8, 2);
        Directory directory = {number(end, 16, 4), number(end, 12, 4), number(end, 10, 2)};
        if (directory.count == 0xFFFF || directory.start == in_zip64 || directory.bytes == in_zip64) {
            const std::string end64 = read_end64(end_at);
            end_at -= locator64_bytes + end64_bytes;
            disk = number(end64, 16, 4), first_disk = number(end64, 20, 4), on_disk = number(end64, 24, 8);
            directory = {number(end64, 48, 8), number(end64, 40, 8), number(end64, 32, 8)};
        }
        if (disk != 0 || first_disk != 0 || on_disk != directory.count) {
            throw malformed(where_, "one zip, not one split into parts", at_byte("part ", disk));
        }
        if (directory.start > end_at || directory.bytes != end_at - directory.start) {
            const std::string got = std::to_string(directory.bytes) + " bytes from byte " + std::to_string(directory.start);
            throw malformed(where_, "the directory right before the end record", got);
        }
        return directory;
    }

    [[nodiscard]] std::vector<Entry> entries(const Directory& directory) const {
        const std::string data = read(static_cast<std::int64_t>(directory.start), directory.bytes, where_);
        const std::string expected = "a directory of " + std::to_string(directory.count) + " entries";
        std::vector<Entry> result;
        std::size_t at = 0;
        for (std::uint64_t index = 0; index < directory.count; ++index) {
            if (at + central_bytes > data.size()) {
                throw malformed(where_, expected, "fewer");
            }
            at = parse_entry(data, at, result);
        }
        if (at != data.size()) {
            throw malformed(where_, expected, "bytes after the last");
        }
        return result;
    }

    /// Where the bytes of an entry begin, if its local header agrees with the directory.
    [[nodiscard]] std::uint64_t data_offset(const Entry& entry) const {
        const std::string where = where_ + ": " + entry.name;
        const auto header_at = static_cast<std::int64_t>(entry.header);
        const std::string header = read(header_at, local_bytes, where);
        const std::size_t name_bytes = number(header, 26, 2);
        const std::string name = read(header_at + static_cast<std::int64_t>(local_bytes), name_bytes, where);
        const bool agrees = header.compare(0, 4, "PK\3\4") == 0 && name == entry.name && number(header, 8, 2) == 0;
        if (!agrees || (number(header, 6, 2) & ~utf8_name_flag) != 0) {
            throw malformed(where, "a local header that agrees with the directory", "another");
        }
        const std::uint64_t data = entry.header + local_bytes + name_bytes + number(header, 28, 2);
        if (data % alignment != 0) {
            throw malformed(where, at_byte("data that starts at a multiple of ", alignment), at_byte("byte ", data));
        }
        return data;
    }

private:
    [[nodiscard]] std::string read_end64(std::uint64_t end_at) const {
        const std::int64_t locator_at = static_cast<std::int64_t>(end_at) - static_cast<std::int64_t>(locator64_bytes);
        const std::string locator = read(locator_at, locator64_bytes, where_);
        const std::int64_t end64_at = locator_at - static_cast<std::int64_t>(end64_bytes);
        const bool points_there = static_cast<std::int64_t>(number(locator, 8, 8)) == end64_at;
        if (locator.compare(0, 4, "PK\6\7") != 0 || !points_there || number(locator, 16, 4) > 1) {
            throw malformed(where_, "a zip64 locator before the end record", "something else");
        }
        std::string end64 = read(end64_at, end64_bytes, where_);
        if (end64.compare(0, 4, "PK\6\6") != 0 || number(end64, 4, 8) != end64_bytes - 12) {
            throw malformed(where_, "a zip64 end record before its locator", "something else");
        }
        return end64;
    }

    /// Adds the entry at `at` to `result`; returns where the next one begins.
    std::size_t parse_entry(const std::string& data, std::size_t at, std::vector<Entry>& result) const {
        const std::string_view head(data.data() + at, central_bytes);
        const std::size_t name_bytes = number(head, 28, 2), extra_bytes = number(head, 30, 2);
        const std::size_t end = at + central_bytes + name_bytes + extra_bytes;
        if (head.substr(0, 4) != "PK\1\2" || number(head, 32, 2) != 0 || end > data.size()) {
            throw malformed(where_, "a directory entry", "something else");
        }
        const std::string name = data.substr(at + central_bytes, name_bytes);
        check_path(name, where_ + ": " + shown(name));
        const std::string where = where_ + ": " + name;
        if (number(head, 10, 2) != 0) {
            throw malformed(where, "an entry that is stored", at_byte("compression method ", number(head, 10, 2)));
        }
        if (const std::uint64_t flags = number(head, 8, 2); (flags & ~utf8_name_flag) != 0) {
            std::array<char, 16> text{};
            std::snprintf(text.data(), text.size(), "flags 0x%x", static_cast<unsigned>(flags));
            throw malformed(where, "no encryption and no data descriptor", text.data());
        }
        constexpr std::uint64_t unix_made = 3;  // the upper half of the attributes is a Unix mode
        const unsigned mode = number(head, 4, 2) >> 8 == unix_made ? static_cast<unsigned>(number(head, 40, 2)) & S_IFMT : 0;
        if (mode != 0 && mode != S_IFREG) {
            throw kind_error(where, mode);
        }
        std::array<std::uint64_t, 3> values = {number(head, 24, 4), number(head, 20, 4), number(head, 42, 4)};
        fill_zip64(std::string_view(data).substr(end - extra_bytes, extra_bytes), values, where);
        if (values[0] != values[1]) {
            const std::string got = std::to_string(values[0]) + " declared, " + std::to_string(values[1]) + " stored";
            throw malformed(where, "as many bytes as are stored", got);
        }
        result.push_back({name, values[2], values[0]});
        return end;
    }

    /// Puts the 64-bit values of the zip64 field where they did not fit; no other field is allowed.
    static void fill_zip64(std::string_view extra, std::array<std::uint64_t, 3>& values, const std::string& where) {
        const auto missing = static_cast<std::size_t>(std::count(values.begin(), values.end(), in_zip64));
        if (extra.size() != (missing != 0 ? 4 + 8 * missing : 0)) {
            throw malformed(where, std::to_string(missing) + " zip64 values", std::to_string(extra.size()) + " bytes of extra fields");
        }
        if (missing != 0 && (number(extra, 0, 2) != 1 || number(extra, 2, 2) != extra.size() - 4)) {
            throw malformed(where, "a zip64 field", at_byte("a field of kind ", number(extra, 0, 2)));
        }
        std::size_t at = 4;
        for (std::uint64_t& value : values) {
            if (value == in_zip64) {
                value = number(extra, at, 8);
                at += 8;
            }
        }
    }

    const File& file_;
    std::string where_;
};

/// The status of what a path names, links not followed.
struct stat status_of(const fs::path& path) {
    struct stat status {};
    if (::lstat(path.c_str(), &status) != 0) {
        throw std::system_error(errno, std::generic_category(), path.string());
    }
    return status;
}

}  // namespace

Extents list_folder(const fs::path& root) {
    Extents extents;
    std::vector<fs::path> folders = {root};
    for (std::size_t index = 0; index < folders.size(); ++index) {  // grows while it is walked
        for (const fs::directory_entry& entry : fs::directory_iterator(fs::path(folders[index]))) {
            const std::string relative = entry.path().lexically_relative(root).generic_string();
            const std::string where = root.string() + ": " + shown(relative);
            const struct stat status = status_of(entry.path());
            if (S_ISDIR(status.st_mode)) {
                folders.push_back(entry.path());
            } else if (S_ISREG(status.st_mode)) {
                check_path(relative, where);
                extents[relative] = {entry.path(), 0, static_cast<std::uint64_t>(status.st_size), identity_of(status)};
            } else {
                throw kind_error(where, status.st_mode);
            }
            if (extents.size() > max_files || folders.size() > max_folders) {
                throw too_many(root.string());
            }
        }
    }
    return extents;
}

Extents list_archive(const fs::path& path) {
    const File file(path);
    const std::string where = path.string();
    const Archive archive(file, where);
    const Directory directory = archive.find_directory();
    if (directory.count > max_files || directory.bytes > max_directory_bytes) {
        throw too_many(where);
    }
    std::vector<Entry> entries = archive.entries(directory);
    std::stable_sort(entries.begin(), entries.end(), [](const Entry& one, const Entry& other) { return one.header < other.header; });
    Extents extents;
    std::uint64_t end = 0;
    for (const Entry& entry : entries) {
        if (extents.count(entry.name) != 0) {
            throw user_error(where + ": " + entry.name, "one entry of that name", "two", repack);
        }
        if (entry.header != end) {
            const std::string expected = "the entry " + entry.name + " at byte " + std::to_string(end) + ", after the one before it";
            throw malformed(where, expected, at_byte("byte ", entry.header));
        }
        const std::uint64_t data = archive.data_offset(entry);
        if (data > directory.start || entry.bytes > directory.start - data) {
            const std::string got = std::to_string(entry.bytes) + " bytes from byte " + std::to_string(data);
            throw malformed(where, entry.name + at_byte(" to end before the directory at byte ", directory.start), got);
        }
        end = data + entry.bytes;
        extents[entry.name] = {path, data, entry.bytes, file.identity()};
    }
    if (end != directory.start) {
        throw malformed(where, "the directory at byte " + std::to_string(end) + ", after the last entry",
                        at_byte("byte ", directory.start));
    }
    return extents;
}

}  // namespace dexport
