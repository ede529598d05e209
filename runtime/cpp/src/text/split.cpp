#include "text/split.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

namespace dexport::text {

namespace {

using Merges = bool (*)(bool delimiter, bool previous);

/// Joins each stretch with the one before where `merges` says so; all that results is kept.
std::vector<Range> joined(const std::vector<Stretch>& stretches, Merges merges) {
    std::vector<Range> result;
    bool previous = false;
    for (const Stretch& stretch : stretches) {
        if (!result.empty() && merges(stretch.delimiter, previous)) {
            result.back().begin = std::min(result.back().begin, stretch.range.begin);
            result.back().end = std::max(result.back().end, stretch.range.end);
        } else {
            result.push_back(stretch.range);
        }
        previous = stretch.delimiter;
    }
    return result;
}

std::vector<Range> kept(const std::vector<Stretch>& stretches, Delimiters delimiters) {
    const Merges first_of_run = [](bool delimiter, bool previous) { return delimiter && !previous; };
    switch (delimiters) {
        case Delimiters::contiguous:
            return joined(stretches, [](bool delimiter, bool previous) { return delimiter == previous; });
        case Delimiters::merged_with_previous:
            return joined(stretches, first_of_run);
        case Delimiters::merged_with_next: {
            std::vector<Range> result = joined({stretches.rbegin(), stretches.rend()}, first_of_run);
            std::reverse(result.begin(), result.end());
            return result;
        }
        case Delimiters::removed:
        case Delimiters::isolated:
            break;
    }
    std::vector<Range> result;
    for (const Stretch& stretch : stretches) {
        if (delimiters == Delimiters::isolated || !stretch.delimiter) {
            result.push_back(stretch.range);
        }
    }
    return result;
}

}  // namespace

Pattern read_pattern(const Json& json) {
    if (json.contains("Regex")) {
        return [regex = Regex(json.at("Regex").get<std::string>())](std::string_view text) { return regex.find_all(text); };
    }
    return literal(json.at("String").get<std::string>());
}

Pattern literal(const std::string& wanted) {
    if (wanted.empty()) {
        throw UnsupportedPart("an empty pattern");
    }
    return [wanted](std::string_view text) {
        std::vector<Range> result;
        for (std::size_t at = text.find(wanted); at != std::string_view::npos; at = text.find(wanted, at + wanted.size())) {
            result.push_back({at, at + wanted.size()});
        }
        return result;
    };
}

Pattern each(bool (*condition)(CodePoint)) {
    return [condition](std::string_view text) {
        std::vector<Range> result;
        for (std::size_t position = 0; position < text.size();) {
            const std::size_t begin = position;
            if (condition(next_code_point(text, position))) {
                result.push_back({begin, position});
            }
        }
        return result;
    };
}

Delimiters read_delimiters(const Json& json) {
    const auto name = json.get<std::string>();
    if (name == "Removed") {
        return Delimiters::removed;
    }
    if (name == "Isolated") {
        return Delimiters::isolated;
    }
    if (name == "MergedWithPrevious") {
        return Delimiters::merged_with_previous;
    }
    if (name == "MergedWithNext") {
        return Delimiters::merged_with_next;
    }
    if (name == "Contiguous") {
        return Delimiters::contiguous;
    }
    throw PartError("the split behavior " + repr(shown(name)));
}

std::vector<Stretch> stretches(std::string_view text, const std::vector<Range>& matches) {
    std::vector<Stretch> result;
    std::size_t position = 0;
    for (const Range& match : matches) {
        if (position < match.begin) {
            result.push_back({{position, match.begin}, false});
        }
        result.push_back({match, true});
        position = match.end;
    }
    if (position < text.size()) {
        result.push_back({{position, text.size()}, false});
    }
    return result;
}

std::vector<Piece> split(const Piece& piece, const std::vector<Stretch>& stretches, Delimiters delimiters) {
    std::vector<Piece> result;
    for (const Range& range : kept(stretches, delimiters)) {
        if (range.begin < range.end) {
            result.push_back({piece.text.substr(range.begin, range.end - range.begin), piece.at_start && range.begin == 0, std::nullopt});
        }
    }
    return result;
}

}  // namespace dexport::text
