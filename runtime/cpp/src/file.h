#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <tuple>

struct stat;

namespace dexport {

/// What changes when a file is replaced or written to: device, inode, size, modification time in ns.
using Identity = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, std::int64_t>;

[[nodiscard]] Identity identity_of(const struct stat& status);

/// A file that is open for reading; closed when it goes.
class File {
public:
    /// Throws std::system_error.
    explicit File(const std::filesystem::path& path);
    ~File();
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    [[nodiscard]] Identity identity() const;
    [[nodiscard]] std::uint64_t size() const { return std::get<2>(identity()); }

    /// Reads up to `count` bytes at `offset`; fewer only at the end of the file. Throws std::system_error.
    std::size_t read(void* target, std::size_t count, std::uint64_t offset) const;

    [[nodiscard]] int descriptor() const { return descriptor_; }

private:
    int descriptor_;
};

/// Bytes of a file in memory without reading them first. Writing changes private copies of pages, never the file.
class Mapping {
public:
    /// Maps `bytes` from `offset`, a multiple of nothing in particular. Throws std::system_error.
    Mapping(const File& file, std::uint64_t offset, std::size_t bytes);
    ~Mapping();
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;

    [[nodiscard]] std::uint8_t* data() const { return data_; }
    [[nodiscard]] std::size_t size() const { return bytes_; }

    /// Gives the memory of its pages back: what is read later comes from the file again, and what was written is lost.
    void forget_pages() const;

private:
    void* start_ = nullptr;  // of the page
    std::size_t length_ = 0;
    std::uint8_t* data_ = nullptr;
    std::size_t bytes_ = 0;
};

}  // namespace dexport
