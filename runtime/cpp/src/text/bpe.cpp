#include <cstdint>
#include <queue>
#include <string>
#include <unordered_map>
#include <utility>

#include "text/fields.h"
#include "text/model.h"
#include "text/unicode.h"

namespace dexport::text {

namespace {

struct Merge {
    std::size_t rank;
    std::uint32_t id;
};

/// By the ids of both sides, the left one in the high half.
using Merges = std::unordered_map<std::uint64_t, Merge>;

struct Bpe {
    std::shared_ptr<const Vocabulary> vocabulary;
    Merges merges;
    std::optional<std::string> unknown;
    std::string prefix;  // of every character of a word but the first
    std::string suffix;  // of a word's last character
    bool fuse_unknown;
    bool byte_fallback;
    bool ignore_merges;
};

std::uint64_t pair_of(std::uint32_t left, std::uint32_t right) {
    return std::uint64_t{left} << 32 | right;
}

std::uint32_t unknown_id(const Bpe& model) {
    if (const auto id = model.vocabulary->find(*model.unknown)) {
        return *id;
    }
    throw PartError("the unk_token " + repr(shown(*model.unknown)) + ", which is not in the vocabulary");
}

/// One token per character of the word, before any merge. Unknown characters without a token for those leave nothing.
Ids characters(const Bpe& model, std::string_view word) {
    Ids ids;
    bool unknown_pending = false;  // an unknown character waits for the next known one; bytes do not release it
    for (std::size_t position = 0; position < word.size();) {
        const std::size_t begin = position;
        static_cast<void>(next_code_point(word, position));
        std::string character = (begin == 0 ? "" : model.prefix) + std::string(word.substr(begin, position - begin));
        character += position == word.size() ? model.suffix : "";
        if (const auto id = model.vocabulary->find(character)) {
            if (std::exchange(unknown_pending, false)) {
                ids.push_back(unknown_id(model));
            }
            ids.push_back(*id);
        } else if (const auto bytes = model.byte_fallback ? byte_ids(*model.vocabulary, character) : std::nullopt) {
            ids.insert(ids.end(), bytes->begin(), bytes->end());
        } else if (model.unknown) {
            if (std::exchange(unknown_pending, true) && !model.fuse_unknown) {
                ids.push_back(unknown_id(model));
            }
        }
    }
    if (unknown_pending) {
        ids.push_back(unknown_id(model));
    }
    return ids;
}

/// A merge that was possible when it was found; first the one of lowest rank, then the leftmost.
struct Candidate {
    std::size_t rank;
    std::size_t left;
    std::uint32_t id;

    bool operator<(const Candidate& other) const { return std::pair(rank, left) > std::pair(other.rank, other.left); }
};

/// The tokens of a word as a linked list, so that a merge takes constant time.
class Word {
public:
    Word(const Merges& merges, const Ids& ids) : merges_(merges) {
        for (std::size_t index = 0; index < ids.size(); ++index) {
            symbols_.push_back({ids[index], index - 1, index + 1, true});
        }
        for (std::size_t index = 0; index + 1 < ids.size(); ++index) {
            consider(index);
        }
    }

    /// Merges until nothing is left to merge.
    Ids merged() {
        while (!queue_.empty()) {
            const Candidate candidate = queue_.top();
            queue_.pop();
            apply(candidate);
        }
        Ids ids;
        for (const Symbol& symbol : symbols_) {
            if (symbol.alive) {
                ids.push_back(symbol.id);
            }
        }
        return ids;
    }

private:
    struct Symbol {
        std::uint32_t id;
        std::size_t previous;  // beyond the end for the first
        std::size_t next;
        bool alive;
    };

    const Merge* merge_at(std::size_t left) const {
        const std::size_t right = left < symbols_.size() ? symbols_[left].next : symbols_.size();
        if (right >= symbols_.size() || !symbols_[left].alive) {
            return nullptr;
        }
        const auto found = merges_.find(pair_of(symbols_[left].id, symbols_[right].id));
        return found == merges_.end() ? nullptr : &found->second;
    }

    void consider(std::size_t left) {
        if (const Merge* merge = merge_at(left)) {
            queue_.push({merge->rank, left, merge->id});
        }
    }

    void apply(const Candidate& candidate) {
        const Merge* merge = merge_at(candidate.left);
        if (merge == nullptr || merge->id != candidate.id) {
            return;  // one of its sides has been merged otherwise since
        }
        Symbol& left = symbols_[candidate.left];
        Symbol& right = symbols_[left.next];
        left.id = candidate.id;
        left.next = right.next;
        right.alive = false;
        if (left.next < symbols_.size()) {
            symbols_[left.next].previous = candidate.left;
        }
        consider(left.previous);
        consider(candidate.left);
    }

    const Merges& merges_;
    std::vector<Symbol> symbols_;
    std::priority_queue<Candidate> queue_;
};

void encode(const Bpe& model, std::string_view word, Ids& ids) {
    const auto whole = model.ignore_merges ? model.vocabulary->find(word) : std::nullopt;
    const Ids found = whole ? Ids{*whole} : Word(model.merges, characters(model, word)).merged();
    ids.insert(ids.end(), found.begin(), found.end());
}

/// ["a", "b"], or "a b" in older files.
std::pair<std::string, std::string> read_sides(const Json& json) {
    if (json.is_array()) {
        return {json.at(0).get<std::string>(), json.at(1).get<std::string>()};
    }
    const auto line = json.get<std::string>();
    const std::size_t space = line.find(' ');
    if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) {
        throw PartError("the merge " + repr(shown(line)));
    }
    return {line.substr(0, space), line.substr(space + 1)};
}

Merges read_merges(const Json& json, const Vocabulary& vocabulary, const std::string& prefix) {
    const auto id_of = [&](const std::string& token) {
        if (const auto id = vocabulary.find(token)) {
            return *id;
        }
        throw PartError("a merge with " + repr(shown(token)) + ", which is not in the vocabulary");
    };
    Merges merges;
    std::size_t rank = 0;
    for (const Json& entry : json) {
        if (entry.is_string() && entry.get<std::string>().rfind("#version", 0) == 0) {
            continue;
        }
        const auto [left, right] = read_sides(entry);
        const std::uint64_t pair = pair_of(id_of(left), id_of(right));
        if (right.size() < prefix.size()) {
            throw PartError("a merge with " + repr(shown(right)) + ", which is shorter than the prefix");
        }
        merges[pair] = {rank++, id_of(left + right.substr(prefix.size()))};
    }
    return merges;
}

}  // namespace

Model read_bpe(const Json& json) {
    if (field<double>(json, "dropout").value_or(0.0) != 0.0) {
        throw UnsupportedPart("a BPE model with dropout");
    }
    Bpe model;
    model.vocabulary = std::make_shared<const Vocabulary>(read_vocabulary(json.at("vocab")));
    model.unknown = field<std::string>(json, "unk_token");
    model.prefix = field<std::string>(json, "continuing_subword_prefix").value_or("");
    model.suffix = field<std::string>(json, "end_of_word_suffix").value_or("");
    model.fuse_unknown = field<bool>(json, "fuse_unk").value_or(false);
    model.byte_fallback = field<bool>(json, "byte_fallback").value_or(false);
    model.ignore_merges = field<bool>(json, "ignore_merges").value_or(false);
    model.merges = read_merges(json.at("merges"), *model.vocabulary, model.prefix);
    const auto vocabulary = model.vocabulary;
    return {vocabulary, vocabulary->size(), [model = std::move(model)](std::string_view word, Ids& ids) { encode(model, word, ids); }};
}

}  // namespace dexport::text
