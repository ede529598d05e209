#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "archive.h"
#include "target.h"

using namespace dexport;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
    static const int file = ::memfd_create("fuzz", 0);
    if (::ftruncate(file, 0) != 0 || ::pwrite(file, data, bytes, 0) != static_cast<ssize_t>(bytes)) {
        return -1;  // not for the corpus
    }
    return read_stranger(data, bytes, [](std::string_view) {
        static_cast<void>(list_archive("/proc/self/fd/" + std::to_string(file)));
    });
}
