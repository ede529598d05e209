#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace dexport::text {

/// Token ids of several prompts, [prompts, length] in row-major order.
struct Tokens {
    std::size_t length = 0;
    std::vector<std::int64_t> ids;
    std::vector<std::int64_t> mask;     ///< 1 where a token stands for text.
    std::vector<std::string> warnings;  ///< One line per prompt that did not fit.
};

/// Encodes prompts; padding, truncation and cleaning are part of the tokenizer. `name` is the text entry's, for warnings.
///
/// Throws what `Tokenizer::encode` does, and a user error if the prompts become rows of different lengths.
[[nodiscard]] Tokens tokenize(const Tokenizer& tokenizer, const std::vector<std::string>& prompts, const std::string& name);

}  // namespace dexport::text
