#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "text/model.h"
#include "text/unicode.h"

namespace dexport::text {

namespace {

std::uint32_t required(const std::optional<std::uint32_t>& unknown) {
    if (!unknown) {
        throw PartError("an unknown word, and no token for those");
    }
    return *unknown;
}

/// The tokens of a word, or none if a part of it is unknown.
std::optional<Ids> longest_first(const Vocabulary& vocabulary, const std::string& prefix, std::string_view word) {
    Ids ids;
    for (std::size_t begin = 0; begin < word.size();) {
        std::string_view rest = word.substr(begin);
        std::optional<std::uint32_t> id;
        while (!rest.empty()) {
            id = vocabulary.find(begin == 0 ? std::string(rest) : prefix + std::string(rest));
            if (id) {
                break;
            }
            rest.remove_suffix(last_character_bytes(rest));
        }
        if (!id) {
            return std::nullopt;
        }
        ids.push_back(*id);
        begin += rest.size();
    }
    return ids;
}

}  // namespace

Model read_word_level(const Json& json) {
    const auto vocabulary = std::make_shared<const Vocabulary>(read_vocabulary(json.at("vocab")));
    const auto unknown = vocabulary->find(json.at("unk_token").get<std::string>());
    const auto encode = [=](std::string_view word, Ids& ids) {
        const auto id = vocabulary->find(word);
        ids.push_back(id ? *id : required(unknown));
    };
    return {vocabulary, vocabulary->size(), encode};
}

Model read_word_piece(const Json& json) {
    const auto vocabulary = std::make_shared<const Vocabulary>(read_vocabulary(json.at("vocab")));
    const auto unknown = vocabulary->find(json.at("unk_token").get<std::string>());
    const auto prefix = json.at("continuing_subword_prefix").get<std::string>();
    const auto most_characters = json.at("max_input_chars_per_word").get<std::size_t>();
    const auto encode = [=](std::string_view word, Ids& ids) {
        const bool too_long = code_points(word).size() > most_characters;
        if (const auto tokens = too_long ? std::nullopt : longest_first(*vocabulary, prefix, word)) {
            ids.insert(ids.end(), tokens->begin(), tokens->end());
        } else {
            ids.push_back(required(unknown));
        }
    };
    return {vocabulary, vocabulary->size(), encode};
}

}  // namespace dexport::text
