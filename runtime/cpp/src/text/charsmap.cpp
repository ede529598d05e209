#include "text/charsmap.h"

#include <openssl/evp.h>

#include <algorithm>

#include "little_endian.h"
#include "text/part.h"
#include "text/unicode.h"

namespace dexport::text {

namespace {

constexpr std::size_t short_grapheme_bytes = 6;  // longer graphemes are replaced character by character
constexpr std::uint32_t is_end = 1U << 31;

std::vector<unsigned char> decoded(const std::string& base64) {
    std::vector<unsigned char> bytes(base64.size() / 4 * 3);
    const auto* text = reinterpret_cast<const unsigned char*>(base64.data());
    const int size = base64.size() % 4 == 0 ? EVP_DecodeBlock(bytes.data(), text, static_cast<int>(base64.size())) : -1;
    if (size < 0) {
        throw PartError("a charsmap that is not in base 64");
    }
    const auto padding =
        std::count(base64.end() - std::min<std::ptrdiff_t>(2, static_cast<std::ptrdiff_t>(base64.size())), base64.end(), '=');
    bytes.resize(static_cast<std::size_t>(size) - static_cast<std::size_t>(padding));
    return bytes;
}

std::uint32_t unit_at(const std::vector<unsigned char>& bytes, std::size_t offset) {
    return static_cast<std::uint32_t>(little_endian({reinterpret_cast<const char*>(bytes.data()) + offset, 4}));
}

// A unit of the double array: bits 0-7 label, 8 has a value, 9 and up the offset to its children (bit 9: in steps of 256).
std::uint32_t label(std::uint32_t unit) {
    return unit & (is_end | 0xFFU);
}

bool has_value(std::uint32_t unit) {
    return (unit >> 8 & 1U) == 1U;
}

std::size_t offset(std::uint32_t unit) {
    return static_cast<std::size_t>(unit >> 10) << ((unit & (1U << 9)) >> 6);
}

}  // namespace

Charsmap::Charsmap(const std::string& base64) {
    const std::vector<unsigned char> bytes = decoded(base64);
    const std::size_t trie_bytes = bytes.size() < 4 ? 0 : unit_at(bytes, 0) / 4 * std::size_t{4};
    if (trie_bytes == 0 || trie_bytes > bytes.size() - 4) {
        throw PartError("a charsmap whose trie is cut off");
    }
    for (std::size_t at = 4; at < 4 + trie_bytes; at += 4) {
        trie_.push_back(unit_at(bytes, at));
    }
    replacements_.assign(bytes.begin() + static_cast<std::ptrdiff_t>(4 + trie_bytes), bytes.end());
    if (!is_utf8(replacements_)) {
        throw PartError("a charsmap that is not in UTF-8");
    }
}

std::string Charsmap::normalized(std::string_view text) const {
    std::string result;
    result.reserve(text.size());
    for (const std::string_view grapheme : graphemes(text)) {
        const auto whole = grapheme.size() < short_grapheme_bytes ? replacement(grapheme) : std::nullopt;
        if (whole) {
            result += *whole;
            continue;
        }
        for (std::size_t position = 0; position < grapheme.size();) {
            const std::size_t begin = position;
            static_cast<void>(next_code_point(grapheme, position));
            const std::string_view character = grapheme.substr(begin, position - begin);
            result += replacement(character).value_or(character);
        }
    }
    return result;
}

/// SentencePiece takes the longest prefix that it knows; the tokenizers library takes the shortest, for all the characters.
std::optional<std::string_view> Charsmap::replacement(std::string_view characters) const {
    const auto begin = shortest_prefix(characters);
    if (!begin) {
        return std::nullopt;
    }
    const bool inside = *begin <= replacements_.size();
    if (!inside || (*begin < replacements_.size() && (static_cast<unsigned char>(replacements_[*begin]) & 0xC0U) == 0x80U)) {
        throw PartError("a charsmap with an offset that leads nowhere");
    }
    const std::string_view rest = std::string_view(replacements_).substr(*begin);
    return rest.substr(0, rest.find('\0'));
}

std::optional<std::uint32_t> Charsmap::shortest_prefix(std::string_view key) const {
    std::size_t node = offset(unit(0));
    for (const char byte : key) {
        const auto wanted = static_cast<unsigned char>(byte);
        if (wanted == 0) {
            break;
        }
        node ^= wanted;
        const std::uint32_t child = unit(node);
        if (label(child) != wanted) {
            break;
        }
        node ^= offset(child);
        if (has_value(child)) {
            return unit(node) & ~is_end;
        }
    }
    return std::nullopt;
}

std::uint32_t Charsmap::unit(std::size_t index) const {
    if (index >= trie_.size()) {
        throw PartError("a charsmap whose trie leads out of itself");
    }
    return trie_[index];
}

}  // namespace dexport::text
