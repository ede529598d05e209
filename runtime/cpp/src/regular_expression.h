#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

struct re_pattern_buffer;  // a compiled pattern of Oniguruma

namespace dexport {

/// Bytes [begin, end) of a text.
struct Range {
    std::size_t begin;
    std::size_t end;
};

/// What Oniguruma says is wrong with a pattern, or with a text that it gives up on.
class ExpressionError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// Whose meaning a pattern has. In Perl's ^ and $ are the ends of the whole text, $ also before a last line break, as in Python.
enum class Syntax { oniguruma, perl };

/// A regular expression over UTF-8. Searching is thread-safe; copies share what was compiled.
class RegularExpression {
public:
    /// Throws ExpressionError for a pattern that is none.
    RegularExpression(const std::string& pattern, Syntax syntax);

    /// The first match that begins at `from` or behind it. Throws ExpressionError where it takes more tries than Oniguruma allows.
    [[nodiscard]] std::optional<Range> find(std::string_view text, std::size_t from = 0) const;

private:
    std::shared_ptr<re_pattern_buffer> compiled_;
};

}  // namespace dexport
