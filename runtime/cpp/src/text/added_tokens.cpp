#include "text/added_tokens.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "text/regex.h"
#include "text/unicode.h"

namespace dexport::text {

namespace {

struct Found {
    std::size_t begin;
    std::size_t end;
    std::uint32_t id;
};

/// From left to right the longest token at each place.
std::vector<Found> find_tokens(std::string_view text, const Vocabulary& tokens) {
    std::vector<Found> result;
    for (std::size_t begin = 0; begin < text.size();) {
        std::size_t end = begin;
        std::uint32_t id = 0;
        tokens.for_each_prefix(text.substr(begin), [&](std::size_t bytes, std::uint32_t found) {
            end = begin + bytes;
            id = found;
        });
        if (end > begin) {
            result.push_back({begin, end, id});
        }
        begin = std::max(end, begin + 1);
    }
    return result;
}

bool beside_a_word(std::string_view before, std::string_view after) {
    static const Regex word("[" + std::string(word_class) + "]");
    std::string neighbours;
    if (!before.empty()) {
        neighbours += before.substr(before.size() - last_character_bytes(before));
    }
    if (!after.empty()) {
        std::size_t bytes = 0;
        static_cast<void>(next_code_point(after, bytes));
        neighbours += after.substr(0, bytes);
    }
    return !word.find_all(neighbours).empty();
}

/// Where the white space begins that the text ends with.
std::size_t trailing_space(std::string_view text) {
    while (!text.empty()) {
        std::size_t begin = text.size() - last_character_bytes(text);
        const std::size_t here = begin;
        if (!is_whitespace(next_code_point(text, begin))) {
            break;
        }
        text = text.substr(0, here);
    }
    return text.size();
}

/// Where the white space ends that the text begins with.
std::size_t leading_space(std::string_view text) {
    for (std::size_t position = 0; position < text.size();) {
        const std::size_t begin = position;
        if (!is_whitespace(next_code_point(text, position))) {
            return begin;
        }
    }
    return text.size();
}

}  // namespace

AddedTokens::AddedTokens(const Json& json, const Model& model, const Normalizer& normalizer) {
    struct Wanted {
        std::string pattern;
        bool normalized;
    };
    std::map<std::uint32_t, Wanted> wanted;  // a token that is given twice counts as given last
    std::map<std::string, std::uint32_t> ids;
    auto next = static_cast<std::uint32_t>(model.size);  // the file's own ids are not looked at
    for (const Json& entry : json) {
        Piece piece{entry.at("content").get<std::string>(), true, std::nullopt};
        if (piece.text.empty()) {
            continue;
        }
        const auto in_model = model.vocabulary->find(piece.text);
        const auto [place, is_new] = ids.try_emplace(piece.text, in_model.value_or(next));
        next += is_new && !in_model ? 1 : 0;
        const bool is_normalized = entry.at("normalized").get<bool>();
        if (is_normalized && normalizer) {
            normalizer(piece);
        }
        wanted[place->second] = {piece.text, is_normalized};
        flags_[place->second] = {entry.at("single_word").get<bool>(), entry.at("lstrip").get<bool>(), entry.at("rstrip").get<bool>()};
    }
    std::vector<Vocabulary::Entry> raw, normalized;
    for (const auto& [id, token] : wanted) {
        (token.normalized ? normalized : raw).push_back({token.pattern, id});
    }
    raw_ = Vocabulary(std::move(raw));
    normalized_ = Vocabulary(std::move(normalized));
}

std::vector<Piece> AddedTokens::split(const Piece& piece, const Vocabulary& tokens) const {
    const std::string_view text = piece.text;
    std::vector<Piece> result;
    const auto add = [&](std::size_t begin, std::size_t end, std::optional<std::uint32_t> id) {
        if (begin < end) {
            result.push_back({std::string(text.substr(begin, end - begin)), piece.at_start && begin == 0, id});
        }
    };
    std::size_t done = 0;
    for (const Found& found : find_tokens(text, tokens)) {
        const Flags& flags = flags_.at(found.id);
        if (flags.single_word && beside_a_word(text.substr(0, found.begin), text.substr(found.end))) {
            continue;
        }
        // The token before may have taken the white space between both.
        const std::size_t begin = flags.lstrip ? std::max(trailing_space(text.substr(0, found.begin)), done) : found.begin;
        const std::size_t end = flags.rstrip ? found.end + leading_space(text.substr(found.end)) : found.end;
        add(done, begin, std::nullopt);
        add(begin, end, found.id);
        done = end;
    }
    add(done, text.size(), std::nullopt);
    return result;
}

}  // namespace dexport::text
