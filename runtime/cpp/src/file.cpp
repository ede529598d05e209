#include "file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace dexport {
namespace {

[[noreturn]] void raise(const std::string& what) {
    throw std::system_error(errno, std::generic_category(), what);
}

}  // namespace

Identity identity_of(const struct stat& status) {
    return {status.st_dev, status.st_ino, static_cast<std::uint64_t>(status.st_size),
            std::int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec};
}

File::File(const std::filesystem::path& path) : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0) {
        raise(path.string());
    }
}

File::~File() {
    ::close(descriptor_);
}

Identity File::identity() const {
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) {
        raise("fstat");
    }
    return identity_of(status);
}

std::size_t File::read(void* target, std::size_t count, std::uint64_t offset) const {
    std::size_t done = 0;
    while (done < count) {
        const auto got = ::pread(descriptor_, static_cast<char*>(target) + done, count - done, static_cast<off_t>(offset + done));
        if (got < 0 && errno != EINTR) {
            raise("read");
        }
        if (got == 0) {
            break;
        }
        done += got > 0 ? static_cast<std::size_t>(got) : 0;
    }
    return done;
}

Mapping::Mapping(const File& file, std::uint64_t offset, std::size_t bytes) : bytes_(bytes) {
    if (bytes == 0) {
        return;  // the system maps no empty range
    }
    const auto slack = static_cast<std::size_t>(offset % static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)));
    length_ = slack + bytes;
    start_ = ::mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.descriptor(), static_cast<off_t>(offset - slack));
    if (start_ == MAP_FAILED) {
        raise("mmap");
    }
    data_ = static_cast<std::uint8_t*>(start_) + slack;
}

Mapping::~Mapping() {
    if (start_ != nullptr) {
        ::munmap(start_, length_);
    }
}

void Mapping::forget_pages() const {
    if (start_ != nullptr) {
        ::madvise(start_, length_, MADV_DONTNEED);  // advice: where it fails, memory is used for longer
    }
}

}  // namespace dexport
