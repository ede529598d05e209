#include "json.h"

#include <utf8proc.h>

#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>
#include <vector>

#include "error.h"

namespace dexport {
namespace {

/// One code point, or one byte that begins none, as it is printed; `width` is the number of bytes that it took.
struct Character {
    std::string printed;
    std::size_t width;
};

bool is_printable(utf8proc_int32_t code) {
    switch (utf8proc_category(code)) {
        case UTF8PROC_CATEGORY_CN:
        case UTF8PROC_CATEGORY_CC:
        case UTF8PROC_CATEGORY_CF:
        case UTF8PROC_CATEGORY_CS:
        case UTF8PROC_CATEGORY_CO:
        case UTF8PROC_CATEGORY_ZL:
        case UTF8PROC_CATEGORY_ZP:
            return false;
        case UTF8PROC_CATEGORY_ZS:
            return code == ' ';
        default:
            return true;
    }
}

std::string escaped(unsigned code) {
    switch (code) {
        case '\n':
            return "\\n";
        case '\r':
            return "\\r";
        case '\t':
            return "\\t";
        default:
            break;
    }
    std::array<char, 16> text{};
    std::snprintf(text.data(), text.size(), code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x", code);
    return text.data();
}

Character character_at(std::string_view text) {
    utf8proc_int32_t code = 0;
    const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
    const utf8proc_ssize_t width = utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(text.size()), &code);
    if (width <= 0) {
        return {escaped(static_cast<unsigned char>(text[0])), 1};
    }
    const auto taken = static_cast<std::size_t>(width);
    return {is_printable(code) ? std::string(text.substr(0, taken)) : escaped(static_cast<unsigned>(code)), taken};
}

/// Builds the document while it is parsed, and stops at what is refused.
class Builder final : public nlohmann::json_sax<Json> {
public:
    Json document;
    std::string refusal;  ///< why parsing stopped

    bool null() override { return add(nullptr); }
    bool boolean(bool value) override { return add(value); }
    bool number_integer(number_integer_t value) override { return add(value); }
    bool number_unsigned(number_unsigned_t value) override { return add(value); }
    bool string(string_t& value) override { return add(std::move(value)); }
    bool binary(binary_t&) override { return refuse("binary data"); }

    bool number_float(number_float_t value, const string_t& text) override {
        if (text.find_first_of(".eE") == string_t::npos) {
            return refuse("an integer of " + std::to_string(text.size()) + " digits");
        }
        return add(value);
    }

    bool start_object(std::size_t) override {
        keys_.emplace_back();
        return add(Json::object());
    }

    bool key(string_t& value) override {
        if (!keys_.back().insert(value).second) {
            return refuse("the key " + repr(value) + " twice in one object");
        }
        key_ = std::move(value);
        return true;
    }

    bool end_object() override {
        keys_.pop_back();
        open_.pop_back();
        return true;
    }

    bool start_array(std::size_t) override { return add(Json::array()); }

    bool end_array() override {
        open_.pop_back();
        return true;
    }

    bool parse_error(std::size_t, const std::string& token, const nlohmann::detail::exception& error) override {
        constexpr int number_overflow = 406;
        if (error.id == number_overflow) {
            return refuse("the number " + token + ", which does not fit a float");
        }
        const std::string text = error.what();  // "[json.exception.parse_error.101] parse error at ..."
        return refuse(text.substr(text.find(']') + 2));
    }

private:
    bool refuse(std::string reason) {
        refusal = std::move(reason);
        return false;
    }

    bool add(Json&& value) {
        if (open_.size() >= max_json_depth) {
            return refuse("nesting deeper than " + std::to_string(max_json_depth));
        }
        const bool opens = value.is_structured();
        Json* place = &document;
        if (open_.empty()) {
            document = std::move(value);
        } else if (open_.back()->is_object()) {
            // Not operator[], which looks through all keys: `keys_` has already said that this one is new.
            auto& members = open_.back()->get_ref<Json::object_t&>();
            members.emplace_back(key_, std::move(value));
            place = &members.back().second;
        } else {
            open_.back()->push_back(std::move(value));
            place = &open_.back()->back();
        }
        if (opens) {
            open_.push_back(place);  // stays valid: nothing is added to a parent while its child is open
        }
        return true;
    }

    std::vector<Json*> open_;
    std::vector<std::unordered_set<std::string>> keys_;
    std::string key_;
};

}  // namespace

Json parse_json(std::string_view text, const std::string& where, std::size_t max_bytes) {
    const std::string fix = get_again;
    if (text.size() > max_bytes) {
        throw user_error(where, "at most " + std::to_string(max_bytes) + " bytes of JSON", std::to_string(text.size()) + " bytes", fix);
    }
    Builder builder;
    if (text.substr(0, 3) == "\xEF\xBB\xBF") {  // the library would skip it
        builder.refusal = "a byte order mark";
    } else if (text.find('\0') != std::string_view::npos) {  // the library would take it for the end
        builder.refusal = "a zero byte";
    } else if (Json::sax_parse(text, &builder)) {
        return std::move(builder.document);
    }
    throw user_error(where, "well-formed JSON in UTF-8", shown(builder.refusal), fix);
}

std::string shown(std::string_view text, std::size_t limit) {
    std::vector<std::string> characters;
    for (std::size_t taken = 0; taken < 4 * limit && !text.empty(); ++taken) {
        const Character next = character_at(text);
        text.remove_prefix(next.width);
        if (next.printed.size() > next.width) {  // escaped: each of its letters counts
            for (const char letter : next.printed) {
                characters.emplace_back(1, letter);
            }
        } else {
            characters.push_back(next.printed);
        }
    }
    std::string line;
    const bool fits = characters.size() <= limit;
    for (std::size_t index = 0; index < characters.size(); ++index) {
        if (!fits && index == limit / 2) {
            line += "...";
            index = characters.size() - (limit + 1) / 2;
        }
        line += characters[index];
    }
    return line;
}

std::string shown_value(const Json& value, std::size_t limit) {
    if (value.is_structured()) {
        return (value.is_object() ? "an object of " : "a list of ") + std::to_string(value.size());
    }
    if (value.is_string()) {
        return shown(value.get_ref<const std::string&>(), limit);
    }
    return value.is_null() ? "None" : value.is_boolean() ? (value.get<bool>() ? "True" : "False") : value.dump();
}

std::string repr(std::string_view text) {
    const bool doubled = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
    const char quote = doubled ? '"' : '\'';
    std::string result(1, quote);
    while (!text.empty()) {
        const Character next = character_at(text);
        if (text[0] == quote || text[0] == '\\') {
            result += '\\';
        }
        result += next.printed;
        text.remove_prefix(next.width);
    }
    return result + quote;
}

}  // namespace dexport
