#include "regular_expression.h"

#include <oniguruma.h>

#include <array>

namespace dexport {
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

RegularExpression::RegularExpression(const std::string& pattern, Syntax syntax) {
    static const int initialised = [] {
        OnigEncoding encoding = ONIG_ENCODING_UTF8;
        return onig_initialize(&encoding, 1);
    }();
    OnigRegex compiled = nullptr;
    OnigErrorInfo info{};
    const OnigUChar *begin = bytes(pattern), *end = begin + pattern.size();
    OnigSyntaxType* const rules = syntax == Syntax::perl ? ONIG_SYNTAX_PERL : ONIG_SYNTAX_DEFAULT;
    const int code = initialised != ONIG_NORMAL ? initialised
                                                : onig_new(&compiled, begin, end, ONIG_OPTION_NONE, ONIG_ENCODING_UTF8, rules, &info);
    if (code != ONIG_NORMAL) {
        throw ExpressionError(message(code, &info));
    }
    compiled_ = std::shared_ptr<re_pattern_buffer>(compiled, &onig_free);
}

std::optional<Range> RegularExpression::find(std::string_view text, std::size_t from) const {
    const std::unique_ptr<OnigRegion, void (*)(OnigRegion*)> region(onig_region_new(),
                                                                    [](OnigRegion* owned) { onig_region_free(owned, 1); });
    const OnigUChar *begin = bytes(text), *end = begin + text.size();
    const int found = onig_search(compiled_.get(), begin, end, begin + from, end, region.get(), ONIG_OPTION_NONE);
    if (found == ONIG_MISMATCH) {
        return std::nullopt;
    }
    if (found < 0) {
        throw ExpressionError(message(found, nullptr));
    }
    return Range{static_cast<std::size_t>(region->beg[0]), static_cast<std::size_t>(region->end[0])};
}

}  // namespace dexport
