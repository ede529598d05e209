#include "error.h"

#include <algorithm>

namespace dexport {

Error::Error(Code code, const std::string& where, const std::string& expected, const std::string& got, const std::string& fix)
    : std::runtime_error(where + ": expected " + expected + ", got " + got + "; " + fix), code_(code) {}

Error user_error(const std::string& where, const std::string& expected, const std::string& got, const std::string& fix) {
    return {Code::user, where, expected, got, fix};
}

Error failure(const std::string& where, const std::string& expected, const std::string& got, const std::string& fix) {
    return {Code::failure, where, expected, got, fix};
}

std::string sorted_text(std::vector<std::string> names) {
    constexpr std::size_t most = 20;
    std::sort(names.begin(), names.end());
    std::string text;
    for (std::size_t index = 0; index < std::min(names.size(), most); ++index) {
        text += (index == 0 ? "" : ", ") + names[index];
    }
    return names.empty() ? "(none)" : names.size() > most ? text + ", ..." : text;
}

std::string reason_of(const std::exception& error) {
    std::string text = error.what();
    text.erase(text.find_last_not_of(" \n\r\t") + 1);
    return text.empty() ? "an error without a message" : text.substr(text.rfind('\n') + 1);
}

}  // namespace dexport
