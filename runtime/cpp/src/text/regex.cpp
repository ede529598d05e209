#include "text/regex.h"

#include "text/part.h"
#include "text/unicode.h"

namespace dexport::text {

namespace {

RegularExpression compiled(const std::string& pattern) {
    try {
        return {pattern, Syntax::oniguruma};
    } catch (const ExpressionError& error) {
        throw PartError("the pattern " + repr(shown(pattern)) + " (" + error.what() + ")");
    }
}

std::optional<Range> next_match(const RegularExpression& pattern, std::string_view text, std::size_t from) {
    try {
        return pattern.find(text, from);
    } catch (const ExpressionError& error) {
        throw PartError("a prompt that one of its patterns fails on (" + std::string(error.what()) + ")");
    }
}

}  // namespace

Regex::Regex(const std::string& pattern) : pattern_(compiled(pattern)) {}

std::vector<Range> Regex::find_all(std::string_view text) const {
    std::vector<Range> result;
    for (std::size_t position = 0; position <= text.size();) {
        const std::optional<Range> match = next_match(pattern_, text, position);
        if (!match) {
            break;
        }
        const bool empty = match->begin == match->end;
        if (empty && !result.empty() && result.back().end == match->end) {
            if (position == text.size()) {
                break;
            }
            static_cast<void>(next_code_point(text, position));
            continue;
        }
        result.push_back(*match);
        position = match->end;
    }
    return result;
}

}  // namespace dexport::text
