#pragma once

#include "text/pre_tokenizer.h"

namespace dexport::text {

/// GPT-2's words: split by its pattern, then every byte spelled as a printable character, so that no text is unknown.
[[nodiscard]] PreTokenizer read_byte_level(const Json& json);

}  // namespace dexport::text
