#include "manifest.h"
#include "target.h"

using namespace dexport;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
    return read_stranger(data, bytes, [](std::string_view text) { static_cast<void>(manifest_from_json(text, "manifest.json")); });
}
