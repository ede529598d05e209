#include "text/unicode.h"

#include <utf8proc.h>

#include <array>
#include <cstdlib>
#include <memory>
#include <new>

namespace dexport::text {

namespace {

constexpr CodePoint capital_i_with_dot = 0x130;  // the only character whose lower case is two

const utf8proc_uint8_t* bytes(std::string_view text) {
    return reinterpret_cast<const utf8proc_uint8_t*>(text.data());
}

}  // namespace

bool is_utf8(std::string_view text) {
    while (!text.empty()) {
        utf8proc_int32_t character = 0;
        const auto size = utf8proc_iterate(bytes(text), static_cast<utf8proc_ssize_t>(text.size()), &character);
        if (size <= 0) {
            return false;
        }
        text.remove_prefix(static_cast<std::size_t>(size));
    }
    return true;
}

CodePoint next_code_point(std::string_view text, std::size_t& position) {
    utf8proc_int32_t character = 0;
    const auto left = static_cast<utf8proc_ssize_t>(text.size() - position);
    position += static_cast<std::size_t>(utf8proc_iterate(bytes(text) + position, left, &character));
    return character;
}

std::size_t last_character_bytes(std::string_view text) {
    std::size_t size = 1;
    while (size < text.size() && (static_cast<unsigned char>(text[text.size() - size]) & 0xC0U) == 0x80U) {
        ++size;
    }
    return size;
}

std::vector<CodePoint> code_points(std::string_view text) {
    std::vector<CodePoint> result;
    result.reserve(text.size());
    for (std::size_t position = 0; position < text.size();) {
        result.push_back(next_code_point(text, position));
    }
    return result;
}

void append(std::string& text, CodePoint character) {
    std::array<utf8proc_uint8_t, 4> encoded{};
    const auto size = utf8proc_encode_char(character, encoded.data());
    text.append(reinterpret_cast<const char*>(encoded.data()), static_cast<std::size_t>(size));
}

bool is_whitespace(CodePoint character) {
    switch (character) {
        case 0x20:
        case 0x85:
        case 0xA0:
        case 0x1680:
        case 0x2028:
        case 0x2029:
        case 0x202F:
        case 0x205F:
        case 0x3000:
            return true;
        default:
            return (character >= 0x9 && character <= 0xD) || (character >= 0x2000 && character <= 0x200A);
    }
}

bool is_numeric(CodePoint character) {
    const auto category = utf8proc_category(character);
    return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(CodePoint character) {
    const auto category = utf8proc_category(character);
    const bool ascii_symbol = character < 0x80 && category >= UTF8PROC_CATEGORY_SM && category <= UTF8PROC_CATEGORY_SO;
    return ascii_symbol || (category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO);
}

bool is_mark(CodePoint character) {
    const auto category = utf8proc_category(character);
    return category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME;
}

bool is_nonspacing_mark(CodePoint character) {
    return utf8proc_category(character) == UTF8PROC_CATEGORY_MN;
}

bool is_control_or_private(CodePoint character) {
    const auto category = utf8proc_category(character);
    return category == UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_CF || category == UTF8PROC_CATEGORY_CO;
}

std::string lowercase(std::string_view text) {
    std::string result;
    result.reserve(text.size());
    for (const CodePoint character : code_points(text)) {
        if (character == capital_i_with_dot) {
            result += "i\u0307";
        } else {
            append(result, utf8proc_tolower(character));
        }
    }
    return result;
}

std::string normalized(std::string_view text, NormalForm form) {
    const bool compose = form == NormalForm::nfc || form == NormalForm::nfkc;
    const bool compatible = form == NormalForm::nfkc || form == NormalForm::nfkd;
    const int options = UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) | (compatible ? UTF8PROC_COMPAT : 0);
    utf8proc_uint8_t* mapped = nullptr;
    const auto size =
        utf8proc_map(bytes(text), static_cast<utf8proc_ssize_t>(text.size()), &mapped, static_cast<utf8proc_option_t>(options));
    if (size < 0) {
        throw std::bad_alloc();  // valid UTF-8 leaves nothing else to go wrong
    }
    const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, &std::free);
    return {reinterpret_cast<const char*>(mapped), static_cast<std::size_t>(size)};
}

std::vector<std::string_view> graphemes(std::string_view text) {
    std::vector<std::string_view> result;
    CodePoint previous = 0;
    utf8proc_int32_t state = 0;
    std::size_t begin = 0;
    for (std::size_t position = 0; position < text.size();) {
        const std::size_t here = position;
        const CodePoint character = next_code_point(text, position);
        if (here > 0 && utf8proc_grapheme_break_stateful(previous, character, &state)) {
            result.push_back(text.substr(begin, here - begin));
            begin = here;
        }
        previous = character;
    }
    if (begin < text.size()) {
        result.push_back(text.substr(begin));
    }
    return result;
}

}  // namespace dexport::text
