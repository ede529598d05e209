#include <doctest/doctest.h>

#include <filesystem>
#include <string>

#include "archive.h"
#include "sample_bundle.h"
#include "sample_files.h"

using namespace dexport;

// Every kind of damaged archive is compared with the Python reader in tests/runtime/cpp/test_readers.py.

TEST_CASE("entries of an archive are stretches of its file") {
    const Folder folder;
    write_file(folder.path() / "a.dxb", sample_archive());
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
    CHECK(refusal(sample_archive() + "x").find("expected a zip's end record in the last 22 bytes") != std::string::npos);
    CHECK(refusal(sample_archive(8)).find("a: expected an entry that is stored, got compression method 8") != std::string::npos);
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
