#include "arguments.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <limits>
#include <string_view>
#include <system_error>

#include "dexport/dexport.h"

namespace player {
namespace {

/// What was typed, before numbers are read.
struct Typed {
    std::optional<std::string> class_label, seed, steps, size, guidance, count;
};

[[noreturn]] void misused(const std::string& what) {
    throw UserError(what + " (see `dexport-run --help`)");
}

[[noreturn]] void invalid(const char* option, const std::string& reason) {
    misused("Invalid value for '" + std::string(option) + "': " + reason);
}

bool are_digits(std::string_view text) {
    return !text.empty() && std::all_of(text.begin(), text.end(), [](char each) { return each >= '0' && each <= '9'; });
}

/// A whole number from the text, if it is one and fits.
template <class Number>
std::optional<Number> whole_number(std::string_view text) {
    if (!text.empty() && text.front() == '+' && are_digits(text.substr(1))) {
        text.remove_prefix(1);
    }
    Number value{};
    const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
    return problem == std::errc() && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

std::int64_t positive(const char* option, const std::string& text) {
    const auto value = whole_number<std::int64_t>(text);
    if (!value) {
        invalid(option, "'" + text + "' is not a valid integer range.");
    }
    if (*value < 1) {
        invalid(option, text + " is not in the range x>=1.");
    }
    return *value;
}

double real_number(const char* option, const std::string& text) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0') {
        invalid(option, "'" + text + "' is not a valid float.");
    }
    return value;
}

/// Pixels of one side, or 0 for a text that is no such number.
std::int64_t pixels(std::string_view text) {
    constexpr std::size_t most_digits = 9;
    return are_digits(text) && text.size() <= most_digits ? whole_number<std::int64_t>(text).value_or(0) : 0;
}

void read_size(std::string_view text, Arguments& arguments) {
    constexpr const char* spaces = " \t\n\r\f\v";
    const std::size_t begin = std::min(text.find_first_not_of(spaces), text.size());
    const std::string_view trimmed = text.substr(begin, text.find_last_not_of(spaces) + 1 - begin);
    const std::size_t cross = std::min(trimmed.find('x'), trimmed.size());
    arguments.height = pixels(trimmed.substr(0, cross));
    arguments.width = cross < trimmed.size() ? pixels(trimmed.substr(cross + 1)) : 0;
    if (arguments.height == 0 || arguments.width == 0) {
        throw UserError("size: expected HEIGHTxWIDTH in pixels, such as 512x768, got '" + std::string(text) + "'; write it that way");
    }
}

void read_numbers(const Typed& typed, Arguments& arguments) {
    if (typed.class_label) {
        arguments.class_label = whole_number<std::int64_t>(*typed.class_label);
        if (!arguments.class_label) {
            invalid("--class-label", "'" + *typed.class_label + "' is not a valid integer.");
        }
    }
    if (typed.seed) {
        arguments.seed = whole_number<std::uint64_t>(*typed.seed);
        if (!arguments.seed) {
            const std::string most = std::to_string(std::numeric_limits<std::uint64_t>::max());
            invalid("--seed", *typed.seed + " is not in the range 0<=x<=" + most + ".");
        }
    }
    arguments.steps = typed.steps ? positive("--steps", *typed.steps) : 0;
    arguments.count = typed.count ? positive("--count", *typed.count) : 1;
    if (typed.guidance) {
        arguments.guidance = real_number("--guidance", *typed.guidance);
    }
    if (typed.size) {
        read_size(*typed.size, arguments);
    }
}

void declare(CLI::App& app, Arguments& arguments, Typed& typed) {
    app.set_help_flag("-h,--help", "Show this message and exit.");
    app.set_version_flag("--version", std::string("dexport-run ") + dexport_version(), "Show the version and exit.");
    app.allow_extras();
    app.add_option("bundle", arguments.bundle, "A folder or a .dxb.")->option_text("BUNDLE");
    app.add_option("--prompt", arguments.prompt, "What to draw.")->option_text("TEXT");
    app.add_option("--negative-prompt", arguments.negative_prompt, "What to keep away from.")->option_text("TEXT");
    app.add_option("--class-label", typed.class_label, "Which class to draw, for class-conditional models.")->option_text("N");
    app.add_option("--seed", typed.seed, "Same seed, same pictures, as in diffusers.  [default: random]")->option_text("N");
    app.add_option("--steps", typed.steps, "Sampling steps; one of those the bundle has.")->option_text("N");
    app.add_option("--size", typed.size, "Height and width in pixels; one of those the bundle has.")->option_text("HxW");
    app.add_option("--guidance", typed.guidance, "Guidance scale.  [default: the bundle's]")->option_text("G");
    app.add_option("--count", typed.count, "Pictures to make: out-0.png, out-1.png, ...  [default: 1]")->option_text("N");
    app.add_option("--noise", arguments.noise, "Initial latents instead of seeded noise.")->option_text("FILE.npy");
    app.add_option("-o,--output", arguments.output, "OUT.png or OUT.npy; the frames of a video become numbered pictures.")
        ->option_text("OUT");
    app.add_flag("--trust", arguments.trust, "Run machine code that was not built here.");
    app.add_flag("--release", arguments.release, "Free each component after its last use, for small devices.");
    app.add_flag("--json", arguments.json, "Print files, seed, times and memory as JSON.");
    app.add_flag("-v,--verbose", arguments.verbose, "Say every instruction that runs.");
}

void check_complete(const CLI::App& app, const Arguments& arguments) {
    const std::vector<std::string> extras = app.remaining();
    if (!extras.empty()) {
        misused(extras.front().rfind('-', 0) == 0 ? "No such option '" + extras.front() + "'."
                                                  : "Got unexpected extra argument (" + extras.front() + ")");
    }
    if (arguments.bundle.empty()) {
        misused("Missing argument 'BUNDLE'.");
    }
    if (arguments.output.empty()) {
        misused("Missing option '-o' / '--output'.");
    }
}

}  // namespace

std::optional<Arguments> read_arguments(int count, const char* const* texts) {
    CLI::App app("Make pictures from BUNDLE.", "dexport-run");
    Arguments arguments;
    Typed typed;
    declare(app, arguments, typed);
    try {
        app.parse(count, texts);
    } catch (const CLI::Success& asked) {  // for help or the version
        app.exit(asked);
        return std::nullopt;
    } catch (const CLI::ArgumentMismatch& error) {
        const std::string text = error.what();  // the option's name, a colon, what CLI11 says
        misused("Option '" + text.substr(0, text.find(':')) + "' requires an argument.");
    } catch (const CLI::ParseError& error) {
        misused(error.what());
    }
    check_complete(app, arguments);
    read_numbers(typed, arguments);
    return arguments;
}

}  // namespace player
