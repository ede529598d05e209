#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dexport::text {

/// The normalization of a SentencePiece model, as its trainer compiled it (the "precompiled_charsmap").
///
/// The bytes are: size of a trie, little endian; the trie, a double array of uint32 over bytes, whose values are offsets; the
/// replacements, each ended by a NUL, that the offsets point into.
class Charsmap {
public:
    /// Throws PartError for bytes that are no charsmap.
    explicit Charsmap(const std::string& base64);

    [[nodiscard]] std::string normalized(std::string_view text) const;

private:
    [[nodiscard]] std::optional<std::string_view> replacement(std::string_view characters) const;
    [[nodiscard]] std::optional<std::uint32_t> shortest_prefix(std::string_view key) const;
    [[nodiscard]] std::uint32_t unit(std::size_t index) const;

    std::vector<std::uint32_t> trie_;
    std::string replacements_;
};

}  // namespace dexport::text
