#include <doctest/doctest.h>

#include <filesystem>

#include "sample_bundle.h"
#include "trust.h"

using namespace dexport;
namespace fs = std::filesystem;

namespace {

const std::string first(64, 'a'), second(64, 'b');

fs::path trust_file(const Folder& folder, const std::string& content, fs::perms mode = fs::perms::owner_read | fs::perms::owner_write) {
    const fs::path file = folder.path() / "trusted-code";
    write_file(file, content);
    fs::permissions(file, mode);
    return file;
}

}  // namespace

TEST_CASE("no file trusts nothing") {
    const Folder folder;
    CHECK(trusted_hashes(folder.path() / "trusted-code").empty());
}

TEST_CASE("hashes are read, empty lines and comments skipped") {
    const Folder folder;
    const fs::path file = trust_file(folder, "# mine\n\n" + first + "  loop.plan\n" + second + "\n \n");
    CHECK(trusted_hashes(file) == std::set<std::string>{first, second});
}

TEST_CASE("a file that others can write to is refused") {
    const Folder folder;
    const fs::path file = trust_file(folder, first + "\n", fs::perms::owner_read | fs::perms::owner_write | fs::perms::group_write);
    CHECK(refusal_of([&] { static_cast<void>(trusted_hashes(file)); }) ==
          file.string() + ": expected a file that only its owner can write to, got mode 620; check it, then: chmod 600 " + file.string());
}

TEST_CASE("a line that is no hash is refused") {
    const Folder folder;
    for (const std::string& line : {std::string("trust everything"), std::string(64, 'A'), first.substr(1), first + second, first + "x"}) {
        const fs::path file = trust_file(folder, second + "\n" + line + "\n");
        CAPTURE(line);
        CHECK(refusal_of([&] { static_cast<void>(trusted_hashes(file)); }).find(":2: expected a sha256 and a comment, got '") !=
              std::string::npos);
    }
}
