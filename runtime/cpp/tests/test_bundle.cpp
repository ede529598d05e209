#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "bundle.h"
#include "error.h"
#include "sample_bundle.h"

using namespace dexport;

namespace {

std::string refusal(const std::filesystem::path& path, Verify verify = Verify::full) {
    return refusal_of([&] { const Bundle bundle(path, verify); });
}

}  // namespace

TEST_CASE("every file comes back, and progress counts every byte") {
    const Folder folder;
    std::uint64_t last = 0, total = 0;
    const Bundle bundle(write_sample_bundle(folder.path()), Verify::full, [&](std::uint64_t done, std::uint64_t all, const std::string&) {
        CHECK(done > last);
        last = done, total = all;
    });
    CHECK(last == total);
    CHECK(bundle.read("programs/toy.json") == sample_program().dump());
    CHECK(bundle.map("programs/toy.json")->size() == sample_program().dump().size());
    CHECK(refusal_of([&] { static_cast<void>(bundle.read("no")); }).find("no: expected a file of the bundle, got none of that name") !=
          std::string::npos);
}

TEST_CASE("what is no bundle is refused") {
    const Folder folder;
    CHECK(refusal("/nowhere") == "/nowhere: expected a bundle, got nothing there; check the path or make one with `dexport build`");
    CHECK(refusal(folder.path()).find("expected a bundle with manifest.json, got a folder without") != std::string::npos);
    write_file(folder.path() / "model_index.json", "{}");
    CHECK(refusal(folder.path()).find("got a diffusers model; build it first") != std::string::npos);
}

TEST_CASE("damaged bundles are refused") {
    const Folder folder;
    const std::filesystem::path path = write_sample_bundle(folder.path());
    const std::string content = sample_program().dump();
    write_file(path / "extra.txt", "");
    CHECK(refusal(path).find("extra.txt: expected only the files that manifest.json lists, got one more") != std::string::npos);
    std::filesystem::remove(path / "extra.txt");
    write_file(path / "programs" / "toy.json", content + " ");
    CHECK(refusal(path).find("toy.json: expected " + std::to_string(content.size()) + " bytes") != std::string::npos);
    write_file(path / "programs" / "toy.json", " " + content.substr(1));
    CHECK(refusal(path).find("toy.json: expected sha256 ") != std::string::npos);
    CHECK(refusal(path, Verify::sizes).empty());
    std::filesystem::remove(path / "programs" / "toy.json");
    CHECK(refusal(path).find("got no such file") != std::string::npos);
}

TEST_CASE("a bundle that changes while it is open is noticed") {
    const Folder folder;
    const Bundle bundle(write_sample_bundle(folder.path()));
    write_file(folder.path() / "programs" / "toy.json", "{}");
    CHECK_THROWS_WITH_AS(static_cast<void>(bundle.read("programs/toy.json")), doctest::Contains("another file, or changed contents"),
                         Error);
    std::filesystem::remove(folder.path() / "programs" / "toy.json");
    CHECK_THROWS_WITH_AS(static_cast<void>(bundle.map("programs/toy.json")), doctest::Contains("got nothing there; open the bundle again"),
                         Error);
}

TEST_CASE("machine code is handed out if it was built here or the caller trusts it") {
    const Folder folder, configuration;
    ::setenv("XDG_CONFIG_HOME", configuration.path().c_str(), 1);
    const std::string file = "engines/decoder.bin";
    const std::filesystem::path path =
        write_sample_bundle(folder.path(), [](Json& manifest) { manifest["components"]["decoder"]["variants"][0]["native"] = true; });
    const Bundle bundle(path), quick(path, Verify::sizes);
    const std::string elsewhere = refusal_of([&] { static_cast<void>(bundle.map(file)); });
    CHECK(elsewhere == path.string() + ": " + file +
                           ": expected machine code that was built on this machine or that you trust, got code from elsewhere; "
                           "build it here with `dexport finalize`, or pass --trust (trust_code) if you know who made it");
    CHECK(refusal_of([&] { static_cast<void>(bundle.read(file)); }) == elsewhere);
    CHECK(Bundle(path, Verify::full, {}, Trust::all).map(file)->size() == bundle.manifest().file(file)->bytes);
    const std::filesystem::path trusted = configuration.path() / "dexport" / "trusted-code";
    write_file(trusted, bundle.manifest().file(file)->sha256 + "  built here\n");
    std::filesystem::permissions(trusted, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
    CHECK(bundle.map(file)->size() == quick.map(file)->size());
    // Of files whose hashes nobody compared, those of machine code are compared before they are handed out.
    write_file(path / file, std::string(bundle.manifest().file(file)->bytes, 'x'));
    const Bundle replaced(path, Verify::sizes);
    CHECK(refusal_of([&] { static_cast<void>(replaced.map(file)); }).find("expected sha256 ") != std::string::npos);
    ::unsetenv("XDG_CONFIG_HOME");
}
