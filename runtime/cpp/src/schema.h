#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"
#include "regular_expression.h"

namespace dexport {

/// A JSON Schema (draft 2020-12), of the keywords that the bundle's two schemas use; any other keyword is a logic_error at once.
///
/// As in the Python runtime 1.0 is no integer, so that no number has to be converted. A library would need its own error texts
/// rewritten, and those at hand lack `prefixItems` and match patterns with std::regex, which recurses once per character.
/// Immutable after construction: any number of threads may use one.
class Schema {
public:
    explicit Schema(std::string_view text);
    ~Schema();
    Schema(const Schema&) = delete;
    Schema& operator=(const Schema&) = delete;

    /// Throws a user error that names the first violation, in the words of `schema_check.py`; `where` is the document's name.
    void check(const Json& document, const std::string& where) const;

    /// The part of the schema that a reference such as "#/$defs/path" names.
    [[nodiscard]] const Json& part(std::string_view reference) const;

    /// Whether a value satisfies a part of the schema.
    [[nodiscard]] bool accepts(const Json& part, const Json& value) const;

private:
    struct Violation;
    class Search;

    void prepare(const Json& node);

    Json root_;
    std::map<std::string, const Json*, std::less<>> references_;
    std::map<std::string, RegularExpression, std::less<>> patterns_;
};

/// Refuses a document of a newer schema, whose rules are not known here; `what` it describes: "bundle".
///
/// Throws a user error that names the dexport that wrote it, if the document does.
void check_version(const Json& document, const std::string& what, int newest, const std::string& where);

}  // namespace dexport
