#include <doctest/doctest.h>

#include <filesystem>
#include <string>

#include "archive.h"
#include "sample_bundle.h"

using namespace dexport;

// Every kind of damaged archive is compared with the Python reader in tests/runtime/cpp/test_readers.py.

namespace {

std::string little(std::uint64_t value, std::size_t bytes) {
    std::string text;
    for (std::size_t index = 0; index < bytes; ++index) {
        text += static_cast<char>(value >> (8 * index) & 255);
    }
    return text;
}

/// A `.dxb` with one stored entry "a" of 5 bytes at byte 4096.
std::string archive(std::uint64_t method = 0) {
    const std::size_t padding = 4096 - 31 - 4;
    const std::string sizes = little(0, 4) + little(5, 4) + little(5, 4);
    std::string text =
        "PK\3\4" + little(20, 2) + little(0, 2) + little(method, 2) + little(0, 4) + sizes + little(1, 2) + little(padding + 4, 2) + "a";
    text += little(0xD935, 2) + little(padding, 2) + std::string(padding, '\0') + "hello";
    const std::size_t start = text.size();
    text += "PK\1\2" + little(20, 2) + little(20, 2) + little(0, 2) + little(method, 2) + little(0, 4) + sizes + little(1, 2) +
            std::string(16, '\0') + "a";
    const std::size_t bytes = text.size() - start;
    return text + "PK\5\6" + little(0, 4) + little(1, 2) + little(1, 2) + little(bytes, 4) + little(start, 4) + little(0, 2);
}

}  // namespace

TEST_CASE("entries of an archive are stretches of its file") {
    const Folder folder;
    write_file(folder.path() / "a.dxb", archive());
    const Extents extents = list_archive(folder.path() / "a.dxb");
    CHECK(extents.size() == 1);
    CHECK(extents.at("a").offset == 4096);
    CHECK(extents.at("a").bytes == 5);
}

TEST_CASE("what is no such archive is refused") {
    const Folder folder;
    const std::filesystem::path path = folder.path() / "a.dxb";
    const auto refusal = [&](const std::string& content) {
        write_file(path, content);
        return refusal_of([&] { static_cast<void>(list_archive(path)); });
    };
    CHECK(refusal("").find("expected a zip of at least 22 bytes, got 0 bytes") != std::string::npos);
    CHECK(refusal(archive() + "x").find("expected a zip's end record in the last 22 bytes") != std::string::npos);
    CHECK(refusal(archive(8)).find("a: expected an entry that is stored, got compression method 8") != std::string::npos);
}

TEST_CASE("a folder is listed without following links") {
    const Folder folder;
    write_file(folder.path() / "b" / "c.txt", "hello");
    CHECK(list_folder(folder.path()).at("b/c.txt").bytes == 5);
    std::filesystem::create_symlink("/etc/passwd", folder.path() / "link");
    CHECK(refusal_of([&] { static_cast<void>(list_folder(folder.path())); }).find("link: expected a regular file, got a symbolic link") !=
          std::string::npos);
    std::filesystem::remove(folder.path() / "link");
    write_file(folder.path() / "a b", "");
    CHECK(refusal_of([&] { static_cast<void>(list_folder(folder.path())); }).find("a b: expected a plain relative path") !=
          std::string::npos);
}
