#include "text/tokenizer.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "error.h"
#include "text/fields.h"
#include "text/unicode.h"

namespace dexport::text {

namespace {

constexpr std::size_t most_bytes = std::size_t{256} << 20;
constexpr std::size_t longest = std::size_t{1} << 20;  // a length beyond it is a mistake, and would only take memory

bool is_present(const Json& json, const char* name) {
    return json.contains(name) && !json.at(name).is_null();
}

bool is_left(const Json& json) {
    return field<std::string>(json, "direction").value_or("Right") == "Left";
}

std::size_t length_in(const Json& json) {
    const auto length = json.is_number_unsigned() ? json.get<std::size_t>() : longest + 1;
    if (length > longest) {
        throw PartError("the length " + shown_value(json));
    }
    return length;
}

/// Every piece that is no token yet becomes what `step` makes of it.
template <class Step>
std::vector<Piece> for_each_open(std::vector<Piece> pieces, Step step) {
    std::vector<Piece> result;
    for (Piece& piece : pieces) {
        if (piece.id) {
            result.push_back(std::move(piece));
        } else {
            std::vector<Piece> parts = step(piece);
            std::move(parts.begin(), parts.end(), std::back_inserter(result));
        }
    }
    return result;
}

}  // namespace

Tokenizer::Tokenizer(std::string_view json, std::string where) : where_(std::move(where)) {
    const Json document = parse_json(json, where_, most_bytes);
    try {
        read(document);
    } catch (const UnsupportedPart& part) {
        const char* fix = "give token ids instead of a prompt, or run the bundle with Python";
        throw user_error(where_, "a tokenizer that this runtime can do", part.what(), fix);
    } catch (const PartError& part) {
        throw user_error(where_, "a tokenizer.json", part.what(), "rebuild the bundle");
    } catch (const Json::exception& error) {
        throw user_error(where_, "a tokenizer.json", shown(error.what()), "rebuild the bundle");
    }
}

void Tokenizer::read(const Json& json) {
    model_ = read_model(json.at("model"));
    if (is_present(json, "normalizer")) {
        normalizer_ = read_normalizer(json.at("normalizer"));
    }
    if (is_present(json, "pre_tokenizer")) {
        pre_tokenizer_ = read_pre_tokenizer(json.at("pre_tokenizer"));
    }
    template_ = is_present(json, "post_processor") ? read_post_processor(json.at("post_processor")) : Template{std::nullopt};
    added_.emplace(is_present(json, "added_tokens") ? json.at("added_tokens") : Json::array(), model_, normalizer_);
    read_limits(json);
}

void Tokenizer::read_limits(const Json& json) {
    if (is_present(json, "truncation")) {
        const Json& part = json.at("truncation");
        if (part.at("strategy") == "OnlySecond") {
            throw UnsupportedPart("the truncation OnlySecond");
        }
        const std::size_t length = length_in(part.at("max_length"));
        const auto around = template_.size() - static_cast<std::size_t>(std::count(template_.begin(), template_.end(), std::nullopt));
        if (length < around) {
            throw PartError("a length of " + std::to_string(length) + ", with " + std::to_string(around) + " special tokens");
        }
        truncation_ = {length - around, is_left(part)};
    }
    if (is_present(json, "padding")) {
        const Json& part = json.at("padding");
        const Json& strategy = part.at("strategy");
        const auto length = strategy.is_object() ? std::optional(length_in(strategy.at("Fixed"))) : std::nullopt;
        const std::size_t multiple = is_present(part, "pad_to_multiple_of") ? length_in(part.at("pad_to_multiple_of")) : 0;
        padding_ = {length, multiple, token_id(part.at("pad_id")), is_left(part)};
    }
}

Encoding Tokenizer::encode(std::string_view text) const {
    if (!is_utf8(text)) {
        throw user_error("prompt", "text in UTF-8", repr(shown(text)), "encode it in UTF-8");
    }
    try {
        Ids ids = prompt_ids(text);
        Encoding encoding;
        encoding.left_out = truncate(ids);
        for (const auto& id : template_) {
            if (id) {
                encoding.ids.push_back(*id);
            } else {
                encoding.ids.insert(encoding.ids.end(), ids.begin(), ids.end());
            }
        }
        encoding.mask.assign(encoding.ids.size(), 1);
        pad(encoding);
        return encoding;
    } catch (const PartError& part) {
        throw user_error(where_, "tokens for every text", part.what(), "change the prompt, or rebuild the bundle");
    }
}

Ids Tokenizer::prompt_ids(std::string_view text) const {
    Ids ids;
    for (const Piece& word : words(text)) {
        if (word.id) {
            ids.push_back(*word.id);
        } else {
            model_.encode(word.text, ids);
        }
    }
    return ids;
}

std::vector<Piece> Tokenizer::words(std::string_view text) const {
    if (text.empty()) {
        return {};
    }
    std::vector<Piece> pieces = added_->split_raw({std::string(text), true, std::nullopt});
    pieces = for_each_open(std::move(pieces), [this](Piece& piece) {
        if (normalizer_) {
            normalizer_(piece);
        }
        return added_->split_normalized(piece);
    });
    return pre_tokenizer_ ? for_each_open(std::move(pieces), pre_tokenizer_) : pieces;
}

std::size_t Tokenizer::truncate(Ids& ids) const {
    if (!truncation_ || ids.size() <= truncation_->most) {
        return 0;
    }
    const std::size_t surplus = ids.size() - truncation_->most;
    if (truncation_->left) {
        ids.erase(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(surplus));
    } else {
        ids.resize(truncation_->most);
    }
    return surplus;
}

void Tokenizer::pad(Encoding& encoding) const {
    if (!padding_) {
        return;
    }
    std::size_t length = padding_->length.value_or(encoding.ids.size());
    if (padding_->multiple > 0) {
        length = (length + padding_->multiple - 1) / padding_->multiple * padding_->multiple;
    }
    const std::size_t missing = length - std::min(length, encoding.ids.size());
    encoding.ids.insert(padding_->left ? encoding.ids.begin() : encoding.ids.end(), missing, padding_->id);
    encoding.mask.insert(padding_->left ? encoding.mask.begin() : encoding.mask.end(), missing, 0);
}

}  // namespace dexport::text
