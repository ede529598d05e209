#include "text/pre_tokenizer.h"

#include <string>
#include <utility>

#include "text/byte_level.h"
#include "text/fields.h"
#include "text/split.h"
#include "text/unicode.h"

namespace dexport::text {

namespace {

PreTokenizer split_at(Pattern pattern, Delimiters delimiters) {
    return [pattern = std::move(pattern), delimiters](const Piece& piece) {
        return split(piece, stretches(piece.text, pattern(piece.text)), delimiters);
    };
}

/// Keeps what the pattern matches and treats everything between as a delimiter.
PreTokenizer split_between(Pattern pattern, Delimiters delimiters) {
    return [pattern = std::move(pattern), delimiters](const Piece& piece) {
        std::vector<Stretch> found = stretches(piece.text, pattern(piece.text));
        for (Stretch& stretch : found) {
            stretch.delimiter = !stretch.delimiter;
        }
        return split(piece, found, delimiters);
    };
}

PreTokenizer sequence(std::vector<PreTokenizer> steps) {
    return [steps = std::move(steps)](const Piece& piece) {
        std::vector<Piece> pieces{piece};
        for (const PreTokenizer& step : steps) {
            std::vector<Piece> next;
            for (const Piece& part : pieces) {
                for (Piece& word : step(part)) {
                    next.push_back(std::move(word));
                }
            }
            pieces = std::move(next);
        }
        return pieces;
    };
}

PreTokenizer read_sequence(const Json& parts) {
    std::vector<PreTokenizer> steps;
    for (const Json& part : parts) {
        steps.push_back(read_pre_tokenizer(part));
    }
    return sequence(std::move(steps));
}

/// SentencePiece's words: each begins with "▁" in place of the space before it.
PreTokenizer read_metaspace(const Json& json) {
    const auto mark = json.at("replacement").get<std::string>();
    const bool never = !field<bool>(json, "add_prefix_space").value_or(true);
    const auto scheme = field<std::string>(json, "prepend_scheme").value_or(never ? "never" : "always");
    if ((scheme != "always" && scheme != "first" && scheme != "never") || (never && scheme != "never")) {
        throw PartError("the prepend_scheme " + repr(shown(scheme)));
    }
    const bool splits = field<bool>(json, "split").value_or(true);
    return [=, spaces = literal(" "), marks = literal(mark)](const Piece& piece) -> std::vector<Piece> {
        Piece marked{"", piece.at_start, std::nullopt};
        for (const Stretch& stretch : stretches(piece.text, spaces(piece.text))) {
            marked.text += stretch.delimiter ? mark : piece.text.substr(stretch.range.begin, stretch.range.end - stretch.range.begin);
        }
        if ((scheme == "always" || (scheme == "first" && piece.at_start)) && marked.text.rfind(mark, 0) != 0) {
            marked.text.insert(0, mark);
        }
        if (!splits) {
            return {marked};
        }
        return split(marked, stretches(marked.text, marks(marked.text)), Delimiters::merged_with_next);
    };
}

PreTokenizer read_split(const Json& json) {
    const Delimiters delimiters = read_delimiters(json.at("behavior"));
    Pattern pattern = read_pattern(json.at("pattern"));
    return json.at("invert").get<bool>() ? split_between(std::move(pattern), delimiters) : split_at(std::move(pattern), delimiters);
}

PreTokenizer whitespace() {
    const std::string inside = word_class;
    const Regex words("[" + inside + "]+|[^" + inside + R"(\s]+)");
    return split_between([words](std::string_view text) { return words.find_all(text); }, Delimiters::removed);
}

}  // namespace

PreTokenizer read_pre_tokenizer(const Json& json) {
    const auto type = json.at("type").get<std::string>();
    if (type == "Sequence") {
        return read_sequence(json.at("pretokenizers"));
    }
    if (type == "Split") {
        return read_split(json);
    }
    if (type == "Metaspace") {
        return read_metaspace(json);
    }
    if (type == "ByteLevel") {
        return read_byte_level(json);
    }
    if (type == "Whitespace") {
        return whitespace();
    }
    if (type == "WhitespaceSplit") {
        return split_at(each(is_whitespace), Delimiters::removed);
    }
    if (type == "BertPreTokenizer") {
        return sequence({split_at(each(is_whitespace), Delimiters::removed), split_at(each(is_punctuation), Delimiters::isolated)});
    }
    if (type == "Punctuation") {
        return split_at(each(is_punctuation), json.contains("behavior") ? read_delimiters(json.at("behavior")) : Delimiters::isolated);
    }
    if (type == "Digits") {
        return split_at(each(is_numeric), json.at("individual_digits").get<bool>() ? Delimiters::isolated : Delimiters::contiguous);
    }
    throw UnsupportedPart("the pre-tokenizer " + shown(type));
}

}  // namespace dexport::text
