#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

namespace player {

/// The request cannot be met as it stands; the text is the line for the user.
class UserError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// The arguments of `dexport-run`, as those of `dexport run` in Python.
struct Arguments {
    std::string bundle;
    std::optional<std::string> prompt;
    std::optional<std::string> negative_prompt;
    std::optional<std::int64_t> class_label;
    std::optional<std::uint64_t> seed;
    std::int64_t steps = 0;   // 0: the bundle's default; so are height and width
    std::int64_t height = 0;  // pixels
    std::int64_t width = 0;
    std::optional<double> guidance;
    std::int64_t count = 1;
    std::optional<std::string> noise;
    std::string output;
    bool trust = false;
    bool release = false;
    bool json = false;
    bool verbose = false;
};

/// Reads the command line; none if it only asked for help or the version, which is printed then. Throws UserError.
[[nodiscard]] std::optional<Arguments> read_arguments(int count, const char* const* texts);

}  // namespace player
