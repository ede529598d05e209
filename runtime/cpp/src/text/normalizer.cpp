#include "text/normalizer.h"

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "text/bert_normalizer.h"
#include "text/charsmap.h"
#include "text/split.h"
#include "text/unicode.h"

namespace dexport::text {

namespace {

Normalizer sequence(const Json& parts) {
    std::vector<Normalizer> steps;
    for (const Json& part : parts) {
        steps.push_back(read_normalizer(part));
    }
    return [steps](Piece& piece) {
        for (const Normalizer& step : steps) {
            step(piece);
        }
    };
}

Normalizer unicode_form(NormalForm form) {
    return [form](Piece& piece) { piece.text = normalized(piece.text, form); };
}

Normalizer strip(bool left, bool right) {
    return [left, right](Piece& piece) {
        std::size_t begin = piece.text.size(), end = 0;
        for (std::size_t position = 0; position < piece.text.size();) {
            const std::size_t here = position;
            if (!is_whitespace(next_code_point(piece.text, position))) {
                begin = std::min(begin, here);
                end = position;
            }
        }
        begin = left ? begin : 0;
        end = right ? std::max(begin, end) : piece.text.size();
        piece.text = piece.text.substr(begin, end - begin);
        piece.at_start = piece.at_start && begin == 0;
    };
}

/// Text put in place of several characters counts as coming from the last of them.
bool starts_as_before(const std::string& text, const Range& first, const std::string& content) {
    if (first.begin > 0 || first.end == 0) {
        return true;
    }
    std::size_t position = 0;
    static_cast<void>(next_code_point(text, position));
    return position == first.end && !content.empty();
}

Normalizer replace(const Pattern& pattern, const std::string& content) {
    return [pattern, content](Piece& piece) {
        const std::vector<Range> matches = piece.text.empty() ? std::vector<Range>() : pattern(piece.text);
        if (matches.empty()) {
            return;
        }
        std::string replaced;
        for (const Stretch& stretch : stretches(piece.text, matches)) {
            replaced += stretch.delimiter ? content : piece.text.substr(stretch.range.begin, stretch.range.end - stretch.range.begin);
        }
        piece.at_start = piece.at_start && starts_as_before(piece.text, matches.front(), content);
        piece.text = std::move(replaced);
    };
}

Normalizer prepend(const std::string& content) {
    return [content](Piece& piece) {
        if (!piece.text.empty()) {
            piece.text.insert(0, content);
        }
    };
}

Normalizer precompiled(const std::string& base64) {
    return [charsmap = std::make_shared<const Charsmap>(base64)](Piece& piece) { piece.text = charsmap->normalized(piece.text); };
}

}  // namespace

Normalizer read_normalizer(const Json& json) {
    const auto type = json.at("type").get<std::string>();
    if (type == "Sequence") {
        return sequence(json.at("normalizers"));
    }
    if (type == "NFC") {
        return unicode_form(NormalForm::nfc);
    }
    if (type == "NFD") {
        return unicode_form(NormalForm::nfd);
    }
    if (type == "NFKC") {
        return unicode_form(NormalForm::nfkc);
    }
    if (type == "NFKD") {
        return unicode_form(NormalForm::nfkd);
    }
    if (type == "Lowercase") {
        return [](Piece& piece) { piece.text = lowercase(piece.text); };
    }
    if (type == "Strip") {
        return strip(json.at("strip_left").get<bool>(), json.at("strip_right").get<bool>());
    }
    if (type == "StripAccents") {
        return [](Piece& piece) { remove_characters(piece, is_mark); };
    }
    if (type == "Replace") {
        return replace(read_pattern(json.at("pattern")), json.at("content").get<std::string>());
    }
    if (type == "Prepend") {
        return prepend(json.at("prepend").get<std::string>());
    }
    if (type == "Precompiled") {
        return precompiled(json.at("precompiled_charsmap").get<std::string>());
    }
    if (type == "BertNormalizer") {
        return read_bert_normalizer(json);
    }
    throw UnsupportedPart("the normalizer " + shown(type));
}

}  // namespace dexport::text
