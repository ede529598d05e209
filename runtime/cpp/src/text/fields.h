#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>

#include "text/part.h"

namespace dexport::text {

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
