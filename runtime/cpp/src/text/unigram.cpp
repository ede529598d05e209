#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "text/fields.h"
#include "text/model.h"
#include "text/unicode.h"

namespace dexport::text {

namespace {

constexpr double unknown_penalty = 10.0;  // SentencePiece's: an unknown character scores this much below the worst token

struct Unigram {
    std::shared_ptr<const Vocabulary> vocabulary;
    std::vector<double> scores;
    double unknown_score;
    std::optional<std::uint32_t> unknown;
    bool byte_fallback;
};

/// The best way to a place in the word: the last token on it and where that begins.
struct Step {
    bool reached = false;
    double score = 0.0;
    std::size_t begin = 0;
    std::uint32_t id = 0;
};

std::uint32_t unknown_id(const Unigram& model) {
    if (!model.unknown) {
        throw PartError("an unknown character, and no token for those");
    }
    return *model.unknown;
}

/// Viterbi's algorithm: the best step to every byte of the word at which a token can end.
std::vector<Step> best_steps(const Unigram& model, std::string_view word) {
    std::vector<Step> steps(word.size() + 1);
    for (std::size_t begin = 0, next = 0; begin < word.size(); begin = next) {
        static_cast<void>(next_code_point(word, next));
        const double score_here = steps[begin].score;
        const auto consider = [&](std::size_t end, double score, std::uint32_t id) {
            if (!steps[end].reached || score > steps[end].score) {
                steps[end] = {true, score, begin, id};
            }
        };
        bool known = false;
        model.vocabulary->for_each_prefix(word.substr(begin), [&](std::size_t bytes, std::uint32_t id) {
            if (bytes > 0) {
                consider(begin + bytes, model.scores[id] + score_here, id);
                known = known || begin + bytes == next;
            }
        });
        if (!known) {
            consider(next, model.unknown_score + score_here, unknown_id(model));
        }
    }
    return steps;
}

/// The stretches of the word that the best tokens cover, unknown characters in a row as one.
std::vector<std::string_view> best_stretches(const Unigram& model, std::string_view word) {
    const std::vector<Step> steps = best_steps(model, word);
    std::vector<std::string_view> result;
    bool after_unknown = false;
    for (std::size_t end = word.size(); end > 0; end = steps[end].begin) {
        const std::size_t begin = steps[end].begin;
        const bool unknown = steps[end].id == model.unknown;
        if (unknown && after_unknown) {
            result.back() = word.substr(begin, end - begin + result.back().size());
        } else {
            result.push_back(word.substr(begin, end - begin));
        }
        after_unknown = unknown;
    }
    std::reverse(result.begin(), result.end());
    return result;
}

void encode(const Unigram& model, std::string_view word, Ids& ids) {
    for (const std::string_view stretch : best_stretches(model, word)) {
        if (const auto id = model.vocabulary->find(stretch)) {
            ids.push_back(*id);
            continue;
        }
        if (const auto bytes = model.byte_fallback ? byte_ids(*model.vocabulary, stretch) : std::nullopt) {
            ids.insert(ids.end(), bytes->begin(), bytes->end());
        } else {
            ids.push_back(unknown_id(model));
        }
    }
}

}  // namespace

Model read_unigram(const Json& json) {
    Unigram model{nullptr, {}, std::numeric_limits<double>::infinity(), std::nullopt, field<bool>(json, "byte_fallback").value_or(false)};
    std::vector<Vocabulary::Entry> entries;
    for (const Json& entry : json.at("vocab")) {
        const auto id = static_cast<std::uint32_t>(entries.size());
        entries.push_back({entry.at(0).get<std::string>(), id});
        model.scores.push_back(entry.at(1).get<double>());
        model.unknown_score = std::min(model.unknown_score, model.scores.back());
    }
    model.unknown_score -= unknown_penalty;
    if (json.contains("unk_id") && !json.at("unk_id").is_null()) {
        model.unknown = token_id(json.at("unk_id"));
    }
    const std::size_t size = entries.size();
    if (model.unknown.value_or(0) >= std::max<std::size_t>(size, 1)) {
        throw PartError("an unk_id beyond the vocabulary");
    }
    model.vocabulary = std::make_shared<const Vocabulary>(std::move(entries));
    const auto vocabulary = model.vocabulary;
    return {vocabulary, size, [model = std::move(model)](std::string_view word, Ids& ids) { encode(model, word, ids); }};
}

}  // namespace dexport::text
