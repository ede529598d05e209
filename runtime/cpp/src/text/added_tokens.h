#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "text/model.h"
#include "text/normalizer.h"
#include "text/vocabulary.h"

namespace dexport::text {

/// Tokens that are found in a text before the model sees it, special ones among them.
class AddedTokens {
public:
    /// Throws PartError.
    AddedTokens(const Json& json, const Model& model, const Normalizer& normalizer);

    /// Cuts out the tokens that are looked for before the text is normalized.
    [[nodiscard]] std::vector<Piece> split_raw(const Piece& piece) const { return split(piece, raw_); }

    /// Cuts out the others. The piece may be empty.
    [[nodiscard]] std::vector<Piece> split_normalized(const Piece& piece) const { return split(piece, normalized_); }

private:
    struct Flags {
        bool single_word = false;  // only where no word character stands beside it
        bool lstrip = false;       // with the white space to its left
        bool rstrip = false;
    };

    [[nodiscard]] std::vector<Piece> split(const Piece& piece, const Vocabulary& tokens) const;

    std::map<std::uint32_t, Flags> flags_;  // by id
    Vocabulary raw_{{}};
    Vocabulary normalized_{{}};
};

}  // namespace dexport::text
