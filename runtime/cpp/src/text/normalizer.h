#pragma once

#include <functional>

#include "text/part.h"

namespace dexport::text {

/// Cleans the text of a piece, which may become empty.
using Normalizer = std::function<void(Piece&)>;

/// The part "normalizer" of a tokenizer.json. Throws PartError.
[[nodiscard]] Normalizer read_normalizer(const Json& json);

}  // namespace dexport::text
