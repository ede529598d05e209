#pragma once

#include <exception>
#include <stdexcept>
#include <string>

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

/// What another library says went wrong, as one line: its last; those before are places in its source.
[[nodiscard]] std::string reason_of(const std::exception& error);

}  // namespace dexport
