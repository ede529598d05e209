#pragma once

#include <functional>
#include <vector>

#include "text/part.h"

namespace dexport::text {

/// Splits one piece into the words that the model then tokenizes one by one.
using PreTokenizer = std::function<std::vector<Piece>(const Piece&)>;

/// The part "pre_tokenizer" of a tokenizer.json. Throws PartError.
[[nodiscard]] PreTokenizer read_pre_tokenizer(const Json& json);

}  // namespace dexport::text
