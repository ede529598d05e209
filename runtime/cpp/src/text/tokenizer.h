#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"
#include "text/model.h"
#include "text/normalizer.h"
#include "text/post_processor.h"
#include "text/pre_tokenizer.h"

namespace dexport::text {

/// What one prompt became.
struct Encoding {
    std::vector<std::int64_t> ids;
    std::vector<std::int64_t> mask;  ///< 1 where a token stands for text or around it, 0 for padding.
    std::size_t left_out = 0;        ///< Tokens of the prompt that did not fit.
};

/// Reads a tokenizer.json of the tokenizers library and gives the same ids. Using it is thread-safe.
class Tokenizer {
public:
    /// `where` is what to call the file in errors. Throws a user error for a file that is none or needs what is not here.
    Tokenizer(std::string_view json, std::string where);

    /// Throws a user error for a text that is not in UTF-8, or that the model has no tokens for.
    [[nodiscard]] Encoding encode(std::string_view text) const;

private:
    struct Truncation {
        std::size_t most;  // tokens of the prompt itself
        bool left;
    };
    struct Padding {
        std::optional<std::size_t> length;
        std::size_t multiple;
        std::uint32_t id;
        bool left;
    };

    void read(const Json& json);
    void read_limits(const Json& json);
    [[nodiscard]] Ids prompt_ids(std::string_view text) const;
    [[nodiscard]] std::vector<Piece> words(std::string_view text) const;
    std::size_t truncate(Ids& ids) const;
    void pad(Encoding& encoding) const;

    std::string where_;
    Model model_;
    Normalizer normalizer_;       // or empty
    PreTokenizer pre_tokenizer_;  // or empty
    std::optional<AddedTokens> added_;
    Template template_;
    std::optional<Truncation> truncation_;
    std::optional<Padding> padding_;
};

}  // namespace dexport::text
