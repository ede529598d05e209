#include "text/vocabulary.h"

#include <utility>

#include "text/fields.h"

namespace dexport::text {

Vocabulary::Vocabulary(std::vector<Entry> entries) : entries_(std::move(entries)) {
    std::reverse(entries_.begin(), entries_.end());
    std::stable_sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) { return a.token < b.token; });
    const auto same = [](const Entry& a, const Entry& b) { return a.token == b.token; };
    entries_.erase(std::unique(entries_.begin(), entries_.end(), same), entries_.end());
}

std::optional<std::uint32_t> Vocabulary::find(std::string_view token) const {
    const auto before = [](const Entry& entry, std::string_view wanted) { return entry.token < wanted; };
    const auto found = std::lower_bound(entries_.begin(), entries_.end(), token, before);
    return found != entries_.end() && found->token == token ? std::optional(found->id) : std::nullopt;
}

Vocabulary read_vocabulary(const Json& json) {
    std::vector<Vocabulary::Entry> entries;
    entries.reserve(json.size());
    for (const auto& [token, id] : json.items()) {
        entries.push_back({token, token_id(id)});
    }
    return Vocabulary(std::move(entries));
}

std::optional<Ids> byte_ids(const Vocabulary& vocabulary, std::string_view text) {
    constexpr const char* digits = "0123456789ABCDEF";
    Ids ids;
    for (const char each : text) {
        const auto byte = static_cast<unsigned char>(each);
        const auto id = vocabulary.find(std::string{'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'});
        if (!id) {
            return std::nullopt;
        }
        ids.push_back(*id);
    }
    return ids;
}

}  // namespace dexport::text
