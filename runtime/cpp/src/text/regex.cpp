#include "text/regex.h"

#include <oniguruma.h>

#include <array>

#include "text/part.h"
#include "text/unicode.h"

namespace dexport::text {

namespace {

std::string message(int code, const OnigErrorInfo* info) {
    std::array<OnigUChar, ONIG_MAX_ERROR_MESSAGE_LEN> text{};
    const int size = onig_error_code_to_str(text.data(), code, info);
    return {reinterpret_cast<const char*>(text.data()), static_cast<std::size_t>(size)};
}

const OnigUChar* bytes(std::string_view text) {
    return reinterpret_cast<const OnigUChar*>(text.data());
}

}  // namespace

Regex::Regex(const std::string& pattern) {
    static const int initialised = [] {
        OnigEncoding encoding = ONIG_ENCODING_UTF8;
        return onig_initialize(&encoding, 1);
    }();
    OnigRegex compiled = nullptr;
    OnigErrorInfo info{};
    const OnigUChar* begin = bytes(pattern);
    const int code = initialised != ONIG_NORMAL ? initialised
                                                : onig_new(&compiled, begin, begin + pattern.size(), ONIG_OPTION_NONE, ONIG_ENCODING_UTF8,
                                                           ONIG_SYNTAX_DEFAULT, &info);
    if (code != ONIG_NORMAL) {
        throw PartError("the pattern " + repr(shown(pattern)) + " (" + message(code, &info) + ")");
    }
    compiled_ = std::shared_ptr<re_pattern_buffer>(compiled, &onig_free);
}

std::vector<Range> Regex::find_all(std::string_view text) const {
    std::vector<Range> result;
    const std::unique_ptr<OnigRegion, void (*)(OnigRegion*)> region(onig_region_new(),
                                                                    [](OnigRegion* owned) { onig_region_free(owned, 1); });
    const OnigUChar *begin = bytes(text), *end = begin + text.size();
    for (std::size_t position = 0; position <= text.size();) {
        const int found = onig_search(compiled_.get(), begin, end, begin + position, end, region.get(), ONIG_OPTION_NONE);
        if (found == ONIG_MISMATCH) {
            break;
        }
        if (found < 0) {
            throw PartError("a prompt that one of its patterns fails on (" + message(found, nullptr) + ")");
        }
        const Range match{static_cast<std::size_t>(region->beg[0]), static_cast<std::size_t>(region->end[0])};
        const bool empty = match.begin == match.end;
        if (empty && !result.empty() && result.back().end == match.end) {
            if (position == text.size()) {
                break;
            }
            static_cast<void>(next_code_point(text, position));
            continue;
        }
        result.push_back(match);
        position = match.end;
    }
    return result;
}

}  // namespace dexport::text
