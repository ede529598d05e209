#include "bundle.h"
#include "program_check.h"
#include "sample_bundle.h"
#include "target.h"

using namespace dexport;

namespace {

/// The components of the sample bundle, which the program among the seeds runs.
std::vector<std::pair<std::string, Component>> sample_components() {
    const Folder folder;
    return Bundle(write_sample_bundle(folder.path())).manifest().components;
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
    static const auto components = sample_components();
    return read_stranger(data, bytes, [](std::string_view text) { check_program(program_from_json(text, "program.json"), components); });
}
