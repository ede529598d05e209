#include "arguments.h"

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <regex>

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

/// A whole number from the text, if it is one and fits.
template <class Number>
std::optional<Number> whole_number(const std::string& text) {
    if (!std::regex_match(text, std::regex("[+-]?[0-9]+")) || (std::is_unsigned_v<Number> && text.front() == '-')) {
        return std::nullopt;
    }
    errno = 0;
    Number value{};
    if constexpr (std::is_unsigned_v<Number>) {
        value = std::strtoull(text.c_str(), nullptr, 10);
    } else {
        value = std::strtoll(text.c_str(), nullptr, 10);
    }
    return errno == 0 ? std::optional(value) : std::nullopt;
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

void read_size(const std::string& text, Arguments& arguments) {
    std::smatch match;
    if (std::regex_match(text, match, std::regex(R"(\s*([0-9]{1,9})x([0-9]{1,9})\s*)"))) {
        arguments.height = std::stoll(match[1]);
        arguments.width = std::stoll(match[2]);
    }
    if (arguments.height == 0 || arguments.width == 0) {
        throw UserError("size: expected HEIGHTxWIDTH in pixels, such as 512x768, got '" + text + "'; write it that way");
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
