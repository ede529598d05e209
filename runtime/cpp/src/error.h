#pragma once

#include <exception>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace dexport {

/// What kind of error it is; the values are those of the C interface.
enum class Code {
    failure = 1,    ///< The request was legal and something broke: disk full, a compiler failed, NaN in a result.
    user = 2,       ///< The request cannot be met as it stands: bad arguments, bad files.
    cancelled = 3,  ///< The caller asked a run to stop.
    busy = 4,       ///< Another run of the same handle has not ended.
};

/// Every error that is raised on purpose: one line that says where, what was expected, what came, what to do.
class Error : public std::runtime_error {
public:
    /// `fix` is an imperative sentence without a full stop. The text is "where: expected ..., got ...; fix".
    Error(Code code, const std::string& where, const std::string& expected, const std::string& got, const std::string& fix);

    [[nodiscard]] Code code() const noexcept { return code_; }

private:
    Code code_;
};

/// An `Error` of `Code::user`.
[[nodiscard]] Error user_error(const std::string& where, const std::string& expected, const std::string& got, const std::string& fix);

/// An `Error` of `Code::failure`.
[[nodiscard]] Error failure(const std::string& where, const std::string& expected, const std::string& got, const std::string& fix);

/// The fix for a file that is not as it was written.
inline constexpr const char* get_again = "get the bundle again or rebuild it";

/// Up to 20 names in alphabetical order: "a, b", "(none)".
[[nodiscard]] std::string sorted_text(std::vector<std::string> names);

/// Likewise of anything whose elements are texts or pairs that begin with one.
template <typename Names>
[[nodiscard]] std::string names_text(const Names& names) {
    std::vector<std::string> list;
    for (const auto& item : names) {
        if constexpr (std::is_convertible_v<decltype(item), std::string>) {
            list.push_back(item);
        } else {
            list.push_back(item.first);
        }
    }
    return sorted_text(std::move(list));
}

/// What another library says went wrong, as one line: its last; those before are places in its source.
[[nodiscard]] std::string reason_of(const std::exception& error);

}  // namespace dexport
