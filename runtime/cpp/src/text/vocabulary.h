#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/part.h"

namespace dexport::text {

using Ids = std::vector<std::uint32_t>;

/// Tokens and their ids, sorted by token: finds a token, or all tokens that a text starts with.
class Vocabulary {
public:
    struct Entry {
        std::string token;
        std::uint32_t id;
    };

    /// Of entries with the same token the last one counts.
    explicit Vocabulary(std::vector<Entry> entries);

    [[nodiscard]] std::size_t size() const { return entries_.size(); }

    [[nodiscard]] std::optional<std::uint32_t> find(std::string_view token) const;

    /// Calls visit(bytes, id) for every token that the text starts with, shortest first.
    template <class Visit>
    void for_each_prefix(std::string_view text, Visit visit) const {
        auto begin = entries_.begin(), end = entries_.end();
        for (std::size_t depth = 0; begin != end; ++depth) {
            // All entries in [begin, end) share the text's first `depth` bytes; one that has no more comes first.
            if (begin->token.size() == depth) {
                visit(depth, begin->id);
                ++begin;
            }
            if (depth == text.size()) {
                return;
            }
            const auto byte = static_cast<unsigned char>(text[depth]);
            const auto at = [depth](const Entry& entry) { return static_cast<unsigned char>(entry.token[depth]); };
            begin = std::partition_point(begin, end, [&](const Entry& entry) { return at(entry) < byte; });
            end = std::partition_point(begin, end, [&](const Entry& entry) { return at(entry) == byte; });
        }
    }

private:
    std::vector<Entry> entries_;
};

/// A JSON object from tokens to ids.
[[nodiscard]] Vocabulary read_vocabulary(const Json& json);

/// The tokens that stand for the bytes of an unknown text, "<0x0A>" for a line feed; none if one is missing.
[[nodiscard]] std::optional<Ids> byte_ids(const Vocabulary& vocabulary, std::string_view text);

}  // namespace dexport::text
