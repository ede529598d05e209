#include "trust.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <sstream>
#include <string_view>
#include <system_error>

#include "error.h"
#include "file.h"
#include "json.h"

namespace dexport {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t max_bytes = 4 << 20, hash_length = 64;
constexpr const char* blanks = " \t\r\f\v";

std::string octal(unsigned mode) {
    std::ostringstream text;
    text << std::oct << mode;
    return text.str();
}

/// The hash that a line begins with; empty if it begins with none.
std::string_view hash_of(std::string_view line) {
    const std::string_view hash = line.substr(0, hash_length);
    const bool complete = hash.size() == hash_length && hash.find_first_not_of("0123456789abcdef") == std::string_view::npos;
    const bool ends = line.size() == hash_length || line.find_first_of(blanks, hash_length) == hash_length;
    return complete && ends ? hash : std::string_view();
}

/// Opens and reads through one descriptor, so that the file whose mode was checked is the one that is read.
std::string checked_content(const fs::path& path) {
    const File file(path);
    struct stat status {};
    if (::fstat(file.descriptor(), &status) != 0) {
        throw std::system_error(errno, std::generic_category());
    }
    if ((status.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
        throw user_error(path.string(), "a file that only its owner can write to", "mode " + octal(status.st_mode & 07777U),
                         "check it, then: chmod 600 " + path.string());
    }
    if (file.size() > max_bytes) {
        throw user_error(path.string(), "at most " + std::to_string(max_bytes) + " bytes", std::to_string(file.size()),
                         "delete what is not needed");
    }
    std::string content(file.size(), '\0');
    content.resize(file.read(content.data(), content.size(), 0));
    return content;
}

}  // namespace

fs::path default_trust_file() {
    const char* given = std::getenv("XDG_CONFIG_HOME");
    if (given != nullptr && *given != '\0') {
        return fs::path(given) / "dexport" / "trusted-code";
    }
    const char* home = std::getenv("HOME");
    return fs::path(home == nullptr ? "" : home) / ".config" / "dexport" / "trusted-code";
}

std::set<std::string> trusted_hashes(const fs::path& file) {
    std::string content;
    try {
        content = checked_content(file);
    } catch (const std::system_error& error) {
        if (error.code() == std::errc::no_such_file_or_directory || error.code() == std::errc::not_a_directory) {
            return {};
        }
        throw user_error(file.string(), "a file that can be read", error.code().message(), "check permissions");
    }
    std::set<std::string> hashes;
    std::istringstream lines(content);
    std::size_t number = 0;
    for (std::string line; std::getline(lines, line);) {
        ++number;
        if (line.find_first_not_of(blanks) == std::string::npos || line[0] == '#') {
            continue;
        }
        const std::string_view hash = hash_of(line);
        if (hash.empty()) {
            throw user_error(file.string() + ":" + std::to_string(number), "a sha256 and a comment", "'" + shown(line) + "'",
                             "delete the line");
        }
        hashes.emplace(hash);
    }
    return hashes;
}

}  // namespace dexport
