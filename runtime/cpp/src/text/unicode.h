#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dexport::text {

using CodePoint = std::int32_t;

/// Whether it is UTF-8 without surrogates; all other functions here expect that of their text.
[[nodiscard]] bool is_utf8(std::string_view text);

/// The code point at `position`, which moves behind it.
[[nodiscard]] CodePoint next_code_point(std::string_view text, std::size_t& position);

/// Bytes of the last character of a text that is not empty.
[[nodiscard]] std::size_t last_character_bytes(std::string_view text);

[[nodiscard]] std::vector<CodePoint> code_points(std::string_view text);

void append(std::string& text, CodePoint character);

/// Unicode's property White_Space.
[[nodiscard]] bool is_whitespace(CodePoint character);
/// General category N.
[[nodiscard]] bool is_numeric(CodePoint character);
/// General category P, or one of ASCII's symbols ($+<=>^`|~).
[[nodiscard]] bool is_punctuation(CodePoint character);
/// General category M.
[[nodiscard]] bool is_mark(CodePoint character);
/// General category Mn.
[[nodiscard]] bool is_nonspacing_mark(CodePoint character);
/// General category Cc, Cf or Co.
[[nodiscard]] bool is_control_or_private(CodePoint character);

/// Character by character, so a final sigma is a sigma like any other.
[[nodiscard]] std::string lowercase(std::string_view text);

enum class NormalForm { nfc, nfd, nfkc, nfkd };
[[nodiscard]] std::string normalized(std::string_view text, NormalForm form);

/// The extended grapheme clusters of a text, in order.
[[nodiscard]] std::vector<std::string_view> graphemes(std::string_view text);

}  // namespace dexport::text
