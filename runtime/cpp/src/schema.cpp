#include "schema.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <set>
#include <stdexcept>

#include "error.h"

namespace dexport {
namespace {

bool is_of_type(const Json& value, std::string_view type) {
    return (type == "object" && value.is_object()) || (type == "array" && value.is_array()) || (type == "string" && value.is_string()) ||
           (type == "null" && value.is_null()) || (type == "boolean" && value.is_boolean()) || (type == "number" && value.is_number()) ||
           (type == "integer" && value.is_number_integer());
}

/// Characters of UTF-8 text: every byte that continues none.
std::size_t length_of(const std::string& text) {
    return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char byte) { return (byte & 0xC0) != 0x80; }));
}

bool matches(const RegularExpression& pattern, const std::string& text) {
    try {
        return pattern.find(text).has_value();
    } catch (const ExpressionError&) {  // a text that takes too many tries is none that a schema means
        return false;
    }
}

/// A value or a list of them, joined: of `enum`, `type` and properties.
std::string joined(const Json& values, const std::string& separator) {
    if (!values.is_structured()) {
        return shown_value(values);
    }
    std::string text;
    for (const auto& item : values.items()) {
        text += (text.empty() ? "" : separator) + (values.is_object() ? item.key() : shown_value(item.value(), item.value().dump().size()));
    }
    return text;
}

/// What a keyword asks for, where its part of the schema has no description.
std::string words_of(const std::string& rule, const Json& value) {
    const std::string number = shown_value(value);
    if (rule == "minimum" || rule == "maximum") {
        return (rule == "minimum" ? "a number from " : "a number up to ") + number;
    }
    if (rule == "maxLength") {
        return "at most " + number + " characters";
    }
    if (rule == "minItems" || rule == "maxItems") {
        return (rule == "minItems" ? "at least " : "at most ") + number + " items";
    }
    if (rule == "minProperties" || rule == "maxProperties") {
        return (rule == "minProperties" ? "at least " : "at most ") + number + " keys";
    }
    return rule == "const" ? number : rule + " " + number;
}

}  // namespace

/// The first place where a document breaks a rule.
struct Schema::Violation {
    const Json* schema;  ///< the part whose rule it is
    std::string rule;
    const Json* value;  ///< what the schema gives the rule
    Json instance;
    std::vector<std::string> path;
};

/// Walks one document in the order of the schema's keywords; every method returns the first violation, if there is one.
class Schema::Search {
public:
    using Found = std::optional<Violation>;

    explicit Search(const Schema& schema) : schema_(schema) {}

    Found visit(const Json& part, const Json& value) {
        for (const auto& keyword : part.items()) {
            if (Found found = apply(part, keyword.key(), keyword.value(), value)) {
                return found;
            }
        }
        return std::nullopt;
    }

private:
    Found apply(const Json& part, const std::string& rule, const Json& asked, const Json& value) {
        if (rule == "$ref") {
            return visit(schema_.part(asked.get_ref<const std::string&>()), value);
        }
        if (rule == "if") {
            const char* branch = schema_.accepts(asked, value) ? "then" : "else";
            return part.contains(branch) ? visit(part.at(branch), value) : std::nullopt;
        }
        if (rule == "allOf") {
            for (const Json& each : asked) {
                if (Found found = visit(each, value)) {
                    return found;
                }
            }
            return std::nullopt;
        }
        if (value.is_object()) {
            if (Found found = of_object(part, rule, asked, value)) {
                return found;
            }
        } else if (value.is_array()) {
            if (Found found = of_array(part, rule, asked, value)) {
                return found;
            }
        }
        return holds(rule, asked, value) ? std::nullopt : Found({&part, rule, &asked, value, path_});
    }

    Found of_object(const Json& part, const std::string& rule, const Json& asked, const Json& value) {
        if (rule == "required") {
            const bool whole = std::all_of(asked.begin(), asked.end(), [&](const Json& key) { return has(value, key); });
            return whole ? std::nullopt : Found({&part, rule, &asked, value, path_});
        }
        if (rule == "properties") {
            for (const auto& property : asked.items()) {
                const auto found = value.find(property.key());
                if (Found violation = found == value.end() ? std::nullopt : below(property.key(), property.value(), *found)) {
                    return violation;
                }
            }
        } else if (rule == "propertyNames") {
            for (const auto& item : value.items()) {
                if (Found violation = visit(asked, Json(item.key()))) {
                    return violation;
                }
            }
        } else if (rule == "additionalProperties") {
            for (const auto& item : value.items()) {
                if (part.contains("properties") && part.at("properties").contains(item.key())) {
                    continue;
                }
                if (Found violation =
                        asked.is_boolean() ? Found({&part, rule, &asked, value, path_}) : below(item.key(), asked, item.value())) {
                    return violation;
                }
            }
        }
        return std::nullopt;
    }

    Found of_array(const Json& part, const std::string& rule, const Json& asked, const Json& value) {
        if (rule != "items" && rule != "prefixItems") {
            return std::nullopt;
        }
        const std::size_t prefixed = part.contains("prefixItems") ? part.at("prefixItems").size() : 0;
        const std::size_t first = rule == "items" ? prefixed : 0;
        const std::size_t end = rule == "items" ? value.size() : std::min(prefixed, value.size());
        for (std::size_t index = first; index < end; ++index) {
            if (Found violation = below(std::to_string(index), rule == "items" ? asked : asked[index], value[index])) {
                return violation;
            }
        }
        return std::nullopt;
    }

    Found below(const std::string& key, const Json& part, const Json& value) {
        path_.push_back(key);
        Found found = visit(part, value);
        path_.pop_back();
        return found;
    }

    /// Rules that ask one thing of a value itself; those of other kinds of values hold.
    bool holds(const std::string& rule, const Json& asked, const Json& value) const {
        if (rule == "type") {
            return asked.is_string() ? is_of_type(value, asked.get_ref<const std::string&>())
                                     : std::any_of(asked.begin(), asked.end(),
                                                   [&](const Json& type) { return is_of_type(value, type.get_ref<const std::string&>()); });
        }
        if (rule == "const") {
            return value == asked && value.is_boolean() == asked.is_boolean();
        }
        if (rule == "enum") {
            return std::find(asked.begin(), asked.end(), value) != asked.end();
        }
        if (rule == "oneOf") {
            return std::count_if(asked.begin(), asked.end(), [&](const Json& part) { return schema_.accepts(part, value); }) == 1;
        }
        if (value.is_number()) {
            return rule == "minimum" ? value >= asked : rule != "maximum" || value <= asked;
        }
        if (value.is_string()) {
            const auto& text = value.get_ref<const std::string&>();
            return rule == "maxLength"
                       ? length_of(text) <= asked.get<std::size_t>()
                       : rule != "pattern" || matches(schema_.patterns_.find(asked.get_ref<const std::string&>())->second, text);
        }
        if (value.is_array()) {
            return rule == "minItems"   ? value.size() >= asked.get<std::size_t>()
                   : rule == "maxItems" ? value.size() <= asked.get<std::size_t>()
                                        : rule != "uniqueItems" || are_unique(value);
        }
        return rule == "minProperties" ? value.size() >= asked.get<std::size_t>()
                                       : rule != "maxProperties" || value.size() <= asked.get<std::size_t>();
    }

    static bool has(const Json& object, const Json& key) { return object.contains(key.get_ref<const std::string&>()); }

    static bool are_unique(const Json& values) { return std::set<Json>(values.begin(), values.end()).size() == values.size(); }

    const Schema& schema_;
    std::vector<std::string> path_;
};

namespace {

/// Keywords that `Search` knows, and those that say something to readers only.
const std::set<std::string, std::less<>> keywords = {
    "$comment",
    "$defs",
    "$ref",
    "$schema",
    "additionalProperties",
    "allOf",
    "const",
    "description",
    "else",
    "enum",
    "if",
    "items",
    "maximum",
    "maxItems",
    "maxLength",
    "maxProperties",
    "minimum",
    "minItems",
    "minProperties",
    "oneOf",
    "pattern",
    "prefixItems",
    "properties",
    "propertyNames",
    "required",
    "then",
    "title",
    "type",
    "uniqueItems",
};

RegularExpression compiled(const std::string& pattern) {
    try {
        return {pattern, Syntax::perl};
    } catch (const ExpressionError&) {
        throw std::logic_error("the schema's pattern " + pattern);
    }
}

}  // namespace

Schema::Schema(std::string_view text) : root_(Json::parse(text)) {
    prepare(root_);
}

Schema::~Schema() = default;

void Schema::prepare(const Json& node) {
    for (const auto& item : node.items()) {
        const std::string& rule = item.key();
        if (keywords.count(rule) == 0) {
            throw std::logic_error("the schema's keyword " + rule);
        }
        if (rule == "$ref") {
            const auto& reference = item.value().get_ref<const std::string&>();
            references_[reference] = &root_.at(Json::json_pointer(reference.substr(1)));
        } else if (rule == "pattern") {
            const auto& pattern = item.value().get_ref<const std::string&>();
            patterns_.emplace(pattern, compiled(pattern));
        } else if (rule == "properties" || rule == "$defs" || rule == "allOf" || rule == "oneOf" || rule == "prefixItems") {
            for (const Json& each : item.value()) {
                prepare(each);
            }
        } else if (item.value().is_object() && rule != "const") {
            prepare(item.value());
        }
    }
}

const Json& Schema::part(std::string_view reference) const {
    return *references_.find(reference)->second;
}

bool Schema::accepts(const Json& part, const Json& value) const {
    return !Search(*this).visit(part, value);
}

void Schema::check(const Json& document, const std::string& where) const {
    const std::optional<Violation> found = Search(*this).visit(root_, document);
    if (!found) {
        return;
    }
    const auto& [schema, rule, value, instance, path] = *found;
    std::string place, expected = schema->contains("description") ? schema->at("description").get<std::string>() : words_of(rule, *value);
    std::string got = instance.is_string() ? "'" + shown_value(instance) + "'" : shown_value(instance);
    for (const std::string& part : path) {
        place += (place.empty() ? "" : ".") + shown(part, 60);
    }
    if (rule == "required") {
        const auto missing = std::find_if(value->begin(), value->end(), [&object = instance](const Json& key) {
            return !object.contains(key.get<std::string>());
        });
        expected = "the key " + repr(missing->get<std::string>());
        got = "none";
    } else if (rule == "additionalProperties") {
        const Json& known = schema->at("properties");
        for (const auto& item : instance.items()) {
            if (!known.contains(item.key())) {
                got = "the key '" + shown(item.key()) + "'";
                break;
            }
        }
        expected = "only the keys " + joined(known, ", ");
    } else if (rule == "enum") {
        expected = "one of " + joined(*value, ", ");
    } else if (rule == "type" && !schema->contains("description")) {
        expected = "JSON of type " + joined(*value, " or ");
    }
    throw user_error(place.empty() ? where : where + ": " + place, expected, got, get_again);
}

void check_version(const Json& document, const std::string& what, int newest, const std::string& where) {
    if (!document.is_object() || !document.contains("schema")) {
        return;
    }
    const Json& version = document.at("schema");
    if (!version.is_number_integer() || version <= newest) {
        return;
    }
    const std::string writer = document.contains("dexport") ? "dexport " + shown_value(document.at("dexport"), 40) : "";
    throw user_error(where, what + " schema " + std::to_string(newest) + " or older",
                     "schema " + shown_value(version) + (writer.empty() ? "" : ", written by " + writer),
                     "install " + (writer.empty() ? "a newer dexport" : writer + " or newer") + " to read it");
}

}  // namespace dexport
