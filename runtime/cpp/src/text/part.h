#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>

#include "json.h"

namespace dexport::text {

/// A stretch of the prompt on its way to token ids. Never empty.
struct Piece {
    std::string text;
    /// Its first character comes from the prompt's first character.
    bool at_start = false;
    /// It is this token already, whatever its text.
    std::optional<std::uint32_t> id;
};

/// What is wrong with a part of a tokenizer.json; `Tokenizer` makes an `Error` of it, as it knows the file.
class PartError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// The file uses what this runtime cannot do.
class UnsupportedPart : public PartError {
public:
    using PartError::PartError;
};

/// The id of a token in JSON.
[[nodiscard]] inline std::uint32_t token_id(const Json& json) {
    if (!json.is_number_unsigned() || json.get<std::uint64_t>() > UINT32_MAX) {
        throw PartError("the token id " + shown_value(json));
    }
    return json.get<std::uint32_t>();
}

/// An optional field, which may also be null.
template <class Value>
[[nodiscard]] std::optional<Value> field(const Json& json, const char* name) {
    const auto found = json.find(name);
    return found == json.end() || found->is_null() ? std::nullopt : std::optional<Value>(found->get<Value>());
}

}  // namespace dexport::text
