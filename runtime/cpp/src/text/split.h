#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "text/part.h"
#include "text/regex.h"
#include "text/unicode.h"

namespace dexport::text {

/// What a pattern finds in a text. Matches do not overlap and come in order.
using Pattern = std::function<std::vector<Range>(std::string_view)>;

/// {"String": ...} or {"Regex": ...}.
[[nodiscard]] Pattern read_pattern(const Json& json);

[[nodiscard]] Pattern literal(const std::string& wanted);

/// Every single character that fulfils the condition.
[[nodiscard]] Pattern each(bool (*condition)(CodePoint));

/// What happens to delimiters.
enum class Delimiters { removed, isolated, merged_with_previous, merged_with_next, contiguous };
[[nodiscard]] Delimiters read_delimiters(const Json& json);

/// A stretch of a text that is a delimiter or lies between delimiters.
struct Stretch {
    Range range;
    bool delimiter;
};

/// The whole text as stretches; the matches are the delimiters.
[[nodiscard]] std::vector<Stretch> stretches(std::string_view text, const std::vector<Range>& matches);

/// The parts of a piece, empty ones left out.
[[nodiscard]] std::vector<Piece> split(const Piece& piece, const std::vector<Stretch>& stretches, Delimiters delimiters);

}  // namespace dexport::text
