#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "regular_expression.h"

namespace dexport::text {

/// The inside of a character class: word characters as Unicode's Technical Standard 18 has them, which \w of Oniguruma is not.
inline constexpr const char* word_class = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200c}\x{200d})";

/// A regular expression as Oniguruma reads it, which is also what the tokenizers library uses. Searching is thread-safe.
class Regex {
public:
    /// Throws PartError for a pattern that is none.
    explicit Regex(const std::string& pattern);

    /// All matches from left to right; an empty one is left out where the match before ended.
    [[nodiscard]] std::vector<Range> find_all(std::string_view text) const;

private:
    RegularExpression pattern_;
};

}  // namespace dexport::text
