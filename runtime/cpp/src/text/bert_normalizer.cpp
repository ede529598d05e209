#include "text/bert_normalizer.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "text/fields.h"

namespace dexport::text {

namespace {

constexpr CodePoint replacement_character = 0xFFFD;

bool is_dropped(CodePoint character) {
    const bool space = character == '\t' || character == '\n' || character == '\r';
    return character == 0 || character == replacement_character || (!space && is_control_or_private(character));
}

bool is_chinese(CodePoint character) {
    // 2B920 is what the tokenizers library has where BERT's own code says 2B820.
    constexpr std::array<std::pair<CodePoint, CodePoint>, 8> blocks = {{{0x4E00, 0x9FFF},
                                                                        {0x3400, 0x4DBF},
                                                                        {0x20000, 0x2A6DF},
                                                                        {0x2A700, 0x2B73F},
                                                                        {0x2B740, 0x2B81F},
                                                                        {0x2B920, 0x2CEAF},
                                                                        {0xF900, 0xFAFF},
                                                                        {0x2F800, 0x2FA1F}}};
    return std::any_of(blocks.begin(), blocks.end(), [=](auto block) { return character >= block.first && character <= block.second; });
}

void clean(Piece& piece) {
    remove_characters(piece, is_dropped);
    std::string result;
    for (const CodePoint character : code_points(piece.text)) {
        append(result, is_whitespace(character) ? ' ' : character);
    }
    piece.text = std::move(result);
}

void isolate_chinese(Piece& piece) {
    std::string result;
    for (const CodePoint character : code_points(piece.text)) {
        const bool chinese = is_chinese(character);
        result += chinese ? " " : "";
        append(result, character);
        result += chinese ? " " : "";
    }
    piece.text = std::move(result);
}

}  // namespace

void remove_characters(Piece& piece, bool (*condition)(CodePoint)) {
    std::string kept;
    bool from_start = piece.at_start;
    for (const CodePoint character : code_points(piece.text)) {
        if (!condition(character)) {
            append(kept, character);
        } else if (kept.empty()) {
            from_start = false;
        }
    }
    piece.text = std::move(kept);
    piece.at_start = from_start;
}

Normalizer read_bert_normalizer(const Json& json) {
    const bool cleans = json.at("clean_text").get<bool>();
    const bool isolates = json.at("handle_chinese_chars").get<bool>();
    const bool lowers = json.at("lowercase").get<bool>();
    const bool strips = field<bool>(json, "strip_accents").value_or(lowers);
    return [=](Piece& piece) {
        if (cleans) {
            clean(piece);
        }
        if (isolates) {
            isolate_chinese(piece);
        }
        if (strips) {
            piece.text = normalized(piece.text, NormalForm::nfd);
            remove_characters(piece, is_nonspacing_mark);
        }
        if (lowers) {
            piece.text = lowercase(piece.text);
        }
    };
}

}  // namespace dexport::text
