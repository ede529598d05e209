#include "atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <random>
#include <string>
#include <system_error>
#include <utility>

#include "error.h"

namespace dexport {
namespace {

[[noreturn]] void raise() {
    throw std::system_error(errno, std::generic_category());
}

/// A file beside `path` to write to; it is gone in the end, unless it has taken its place.
class PartFile {
public:
    explicit PartFile(const std::filesystem::path& path) : path_(path) {
        path_.replace_filename("." + path.filename().string() + "." + std::to_string(std::random_device()()) + ".part");
        descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (descriptor_ < 0) {
            raise();
        }
    }
    ~PartFile() {
        close();
        ::unlink(path_.c_str());
    }
    PartFile(const PartFile&) = delete;
    PartFile& operator=(const PartFile&) = delete;

    void write(std::string_view bytes) {
        while (!bytes.empty()) {
            const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
            if (written < 0 && errno != EINTR) {
                raise();
            }
            bytes.remove_prefix(written < 0 ? 0 : static_cast<std::size_t>(written));
        }
    }

    void take_place(const std::filesystem::path& path) {
        if (close() != 0 || ::rename(path_.c_str(), path.c_str()) != 0) {
            raise();
        }
    }

private:
    int close() { return descriptor_ < 0 ? 0 : ::close(std::exchange(descriptor_, -1)); }

    std::filesystem::path path_;
    int descriptor_ = -1;
};

}  // namespace

void write_atomically(const std::filesystem::path& path, const std::vector<std::string_view>& parts) {
    try {
        PartFile file(path);
        for (const std::string_view part : parts) {
            file.write(part);
        }
        file.take_place(path);
    } catch (const std::system_error& error) {
        const int code = error.code().value();
        if (code == ENOSPC || code == EDQUOT) {
            throw failure(path.string(), "space for the result", "a full disk", "free some space or write to another disk with -o");
        }
        const char* fix = "check permissions or write somewhere else with -o";
        throw user_error(path.string(), "a file that can be written", error.code().message(), fix);
    }
}

}  // namespace dexport
