#include "target.h"
#include "text/tokenizer.h"

using namespace dexport;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
    return read_stranger(data, bytes, [](std::string_view text) {
        const text::Tokenizer tokenizer(text, "tokenizer.json");
        static_cast<void>(tokenizer.encode("a red circle, don't \xc3\x85\xe2\x84\xab \xe4\xb8\xad 12\n"));
    });
}
