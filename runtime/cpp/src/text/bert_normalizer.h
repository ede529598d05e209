#pragma once

#include "text/normalizer.h"
#include "text/unicode.h"

namespace dexport::text {

/// BERT's cleaning: control characters, spaces around Chinese characters, accents, case.
[[nodiscard]] Normalizer read_bert_normalizer(const Json& json);

/// Removes every character that fulfils the condition.
void remove_characters(Piece& piece, bool (*condition)(CodePoint));

}  // namespace dexport::text
