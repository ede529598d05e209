#include "text/byte_level.h"

#include <array>
#include <optional>
#include <string>

#include "text/fields.h"
#include "text/split.h"
#include "text/unicode.h"

namespace dexport::text {

namespace {

constexpr const char* words = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

bool is_printable_latin(int byte) {
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

/// Printable bytes stand for themselves, the others for 256, 257, ... in their order.
std::array<std::string, 256> byte_spellings() {
    std::array<std::string, 256> spellings;
    CodePoint next = 256;
    for (int byte = 0; byte < 256; ++byte) {
        append(spellings[static_cast<std::size_t>(byte)], is_printable_latin(byte) ? byte : next++);
    }
    return spellings;
}

}  // namespace

PreTokenizer read_byte_level(const Json& json) {
    const bool prefix_space = json.at("add_prefix_space").get<bool>();
    const auto pattern = field<bool>(json, "use_regex").value_or(true) ? std::optional(Regex(words)) : std::nullopt;
    return [prefix_space, pattern, spellings = byte_spellings()](const Piece& piece) {
        Piece spaced = piece;
        if (prefix_space && spaced.text.front() != ' ') {
            spaced.text.insert(0, " ");
        }
        std::vector<Piece> pieces{spaced};
        if (pattern) {
            pieces = split(spaced, stretches(spaced.text, pattern->find_all(spaced.text)), Delimiters::isolated);
        }
        for (Piece& part : pieces) {
            std::string spelled;
            for (const char byte : part.text) {
                spelled += spellings[static_cast<unsigned char>(byte)];
            }
            part.text = spelled;
        }
        return pieces;
    };
}

}  // namespace dexport::text
