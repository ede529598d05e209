#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace dexport {

/// JSON whose objects keep the order of their keys, as errors and progress name things in the document's order.
/// Finding a key takes time linear in the size of its object: find in large ones only what is then kept elsewhere.
/// Only declared here: who looks into one includes <nlohmann/json.hpp>, which takes seconds to compile.
using Json = nlohmann::ordered_json;

inline constexpr std::size_t max_json_depth = 32;

/// Parses one JSON document from strangers.
///
/// Refused: more than `max_bytes`, anything that is not UTF-8, nesting deeper than 32, a key given twice, NaN and infinities
/// (also as 1e999), integers beyond 64 bits. `where` is what to call the document. Throws a user error.
[[nodiscard]] Json parse_json(std::string_view text, const std::string& where, std::size_t max_bytes);

/// A stranger's text as one short printable line: control characters escaped, the middle of long text left out.
[[nodiscard]] std::string shown(std::string_view text, std::size_t limit = 100);

/// A stranger's JSON value likewise, spelled as Python spells it; of lists and objects only the size.
[[nodiscard]] std::string shown_value(const Json& value, std::size_t limit = 100);

/// Text in quotes, as Python's repr spells it.
[[nodiscard]] std::string repr(std::string_view text);

}  // namespace dexport
