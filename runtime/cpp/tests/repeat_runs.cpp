// Opens the sample bundle OPENINGS times, each time for RUNS runs, and prints the memory that is in use after the first tenth and at
// the end, in bytes: {"allocated": [a, b], "resident": [a, b]}. For valgrind, which prints its own figures: tests/runtime/cpp/test_memory.py.
// Usage: repeat_runs OPENINGS RUNS
#include <malloc.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "dexport/dexport.hpp"
#include "sample_bundle.h"

namespace {

struct InUse {
    std::size_t allocated;
    std::size_t resident;
};

InUse memory_in_use() {
    std::size_t pages = 0, resident_pages = 0;
    std::ifstream("/proc/self/statm") >> pages >> resident_pages;
    const struct mallinfo2 heap = ::mallinfo2();
    return {heap.uordblks + heap.hblkhd, resident_pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE))};
}

}  // namespace

int main(int, char** arguments) {
    const dexport::Folder folder;
    const std::string path = dexport::write_sample_bundle(folder.path()).string();
    const int openings = std::atoi(arguments[1]), runs = std::atoi(arguments[2]), early = openings * runs / 10;
    dexport::v1::Request request;
    request.class_labels = {2};
    request.seeds = {7};
    InUse first{}, last{};
    int done = 0;
    for (int opening = 0; opening < openings; ++opening) {
        const dexport::v1::Pipeline pipeline(path);
        for (int run = 0; run < runs; ++run) {
            static_cast<void>(pipeline.run(request));
            last = memory_in_use();
            if (done++ == early) {
                first = last;
            }
        }
    }
    std::printf("{\"allocated\": [%zu, %zu], \"resident\": [%zu, %zu]}\n", first.allocated, last.allocated, first.resident, last.resident);
}
