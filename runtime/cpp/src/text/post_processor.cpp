#include "text/post_processor.h"

#include <string>

#include "text/fields.h"

namespace dexport::text {

namespace {

const Template prompt_alone = {std::nullopt};

Template read_template(const Json& json) {
    Template result;
    for (const Json& piece : json.at("single")) {
        if (piece.contains("Sequence")) {
            if (piece.at("Sequence").at("id") != "A") {
                throw PartError("a template for one prompt that has two");
            }
            result.emplace_back();
        } else {
            const auto name = piece.at("SpecialToken").at("id").get<std::string>();
            for (const Json& id : json.at("special_tokens").at(name).at("ids")) {
                result.emplace_back(token_id(id));
            }
        }
    }
    return result;
}

/// At most one part of a sequence adds tokens; the tokenizers library knows no other either.
Template read_sequence(const Json& parts) {
    Template result = prompt_alone;
    for (const Json& part : parts) {
        Template next = read_post_processor(part);
        if (next == prompt_alone) {
            continue;
        }
        if (result != prompt_alone) {
            throw UnsupportedPart("two post-processors that both add tokens");
        }
        result = next;
    }
    return result;
}

}  // namespace

Template read_post_processor(const Json& json) {
    const auto type = json.at("type").get<std::string>();
    if (type == "TemplateProcessing") {
        return read_template(json);
    }
    if (type == "RobertaProcessing" || type == "BertProcessing") {
        return {token_id(json.at("cls").at(1)), std::nullopt, token_id(json.at("sep").at(1))};
    }
    if (type == "ByteLevel") {
        return prompt_alone;  // it only changes offsets
    }
    if (type == "Sequence") {
        return read_sequence(json.at("processors"));
    }
    throw UnsupportedPart("the post-processor " + shown(type));
}

}  // namespace dexport::text
