#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "text/vocabulary.h"

namespace dexport::text {

/// The part "model" of a tokenizer.json: how a word becomes tokens.
struct Model {
    std::shared_ptr<const Vocabulary> vocabulary;
    /// Entries in the file; more than in the vocabulary where a token stands twice.
    std::size_t size;
    /// Appends the ids of a word's tokens. Throws PartError where the model knows no token for a word.
    std::function<void(std::string_view word, Ids& ids)> encode;
};

/// Throws PartError.
[[nodiscard]] Model read_model(const Json& json);

/// Byte pair encoding (arXiv:1508.07909), with CLIP's end-of-word suffix and SentencePiece's bytes for unknown characters.
[[nodiscard]] Model read_bpe(const Json& json);

/// The most probable tokens under a unigram language model (arXiv:1804.10959), as in T5.
[[nodiscard]] Model read_unigram(const Json& json);

/// Whole words only.
[[nodiscard]] Model read_word_level(const Json& json);

/// The longest known token first, as in BERT.
[[nodiscard]] Model read_word_piece(const Json& json);

}  // namespace dexport::text
