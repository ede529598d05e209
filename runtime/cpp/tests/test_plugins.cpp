#include "plugins.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "sample_bundle.h"
#include "sha256.h"

using namespace dexport;

namespace {

constexpr const char* library = "plugins/libdexport_one.so";

/// A TensorRT of version 10.3.0 on an Orin, which looks at libraries and loads none.
class Watcher final : public TensorRt {
public:
    [[nodiscard]] int sm() const override { return 87; }
    [[nodiscard]] std::string version() const override { return "10.3.0"; }
    [[nodiscard]] std::string load_plugin(const std::string& path) override {
        paths.push_back(path);
        std::ifstream file(path, std::ios::binary);
        contents.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
        struct stat status {};
        ::stat(std::filesystem::path(path).parent_path().c_str(), &status);
        is_private = (status.st_mode & 077U) == 0;
        return refusal;
    }
    [[nodiscard]] std::unique_ptr<Engine> open(const std::shared_ptr<const Mapping>&, const std::vector<int>&, const std::string&,
                                               const std::string&) override {
        return nullptr;
    }

    std::vector<std::string> paths, contents;
    std::string refusal;
    bool is_private = false;
};

std::string sha256_of(const std::string& content) {
    Sha256 hash;
    hash.update(content.data(), content.size());
    return hash.hexadecimal();
}

/// A bundle with one plugin, after `edit`.
std::filesystem::path bundle_in(const Folder& folder, const std::function<void(Json&)>& edit = {}) {
    write_file(folder.path() / library, "machine code");
    return write_sample_bundle(folder.path(), [&](Json& manifest) {
        manifest["plugins"] = Json::array({{{"name", "one"}, {"files", Json::array({library})}, {"sm", 87}, {"tensorrt", "10.3.0"}}});
        if (edit) {
            edit(manifest);
        }
    });
}

/// What is said of a bundle with one plugin, its folder left out.
std::string refused(Watcher& tensorrt, const std::function<void(Json&)>& edit, Trust trust = Trust::all) {
    const Folder folder;
    const std::filesystem::path path = bundle_in(folder, edit);
    const std::string text = refusal_of([&] { load_plugins(Bundle(path, Verify::full, {}, trust), tensorrt); });
    return text.substr(std::min(text.size(), folder.path().string().size()));
}

}  // namespace

TEST_CASE("the library is loaded from a private copy that goes again") {
    const Folder folder;
    Watcher tensorrt;
    load_plugins(Bundle(bundle_in(folder), Verify::full, {}, Trust::all), tensorrt);
    CHECK(tensorrt.contents == std::vector<std::string>{"machine code"});
    CHECK(tensorrt.is_private);
    CHECK(!std::filesystem::exists(std::filesystem::path(tensorrt.paths.front()).parent_path()));
}

TEST_CASE("sources, and bundles without plugins, load nothing") {
    Watcher tensorrt;
    CHECK(refused(tensorrt, [](Json& manifest) { manifest["plugins"] = Json::array(); }).empty());
    CHECK(refused(tensorrt, [](Json& manifest) { manifest["plugins"][0]["sm"] = manifest["plugins"][0]["tensorrt"] = nullptr; }).empty());
    CHECK(tensorrt.paths.empty());
}

TEST_CASE("a library for another GPU or another TensorRT is not loaded") {
    Watcher tensorrt;
    CHECK(refused(tensorrt, [](Json& manifest) { manifest["plugins"][0]["sm"] = 110; }) ==
          ": plugin one: expected a plugin for this GPU (SM87), got one for SM110; finalize the kit on this machine");
    CHECK(refused(tensorrt, [](Json& manifest) { manifest["plugins"][0]["tensorrt"] = "11.1.0"; }) ==
          ": plugin one: expected a plugin for TensorRT 10.3.0, got one for 11.1.0; finalize the kit on this machine");
    CHECK(tensorrt.paths.empty());
    CHECK(refused(tensorrt, [](Json& manifest) { manifest["plugins"][0]["tensorrt"] = "10.13.3"; }).empty());
}

TEST_CASE("only a library that is trusted and undamaged is loaded") {
    const Folder configuration;
    ::setenv("XDG_CONFIG_HOME", configuration.path().c_str(), 1);
    Watcher tensorrt;
    CHECK(refused(tensorrt, {}, Trust::own).find("got code from elsewhere; build it here with `dexport finalize`, or pass --trust") !=
          std::string::npos);
    CHECK(tensorrt.paths.empty());
    const std::filesystem::path trusted = configuration.path() / "dexport" / "trusted-code";
    write_file(trusted, sha256_of("machine code") + "  mine\n");
    std::filesystem::permissions(trusted, std::filesystem::perms(0600));
    CHECK(refused(tensorrt, {}, Trust::own).empty());
    CHECK(tensorrt.paths.size() == 1);

    const Folder folder;
    const std::filesystem::path path = bundle_in(folder);
    write_file(folder.path() / library, "malice, code");
    CHECK(refusal_of([&] { load_plugins(Bundle(path, Verify::sizes), tensorrt); }).find(": expected sha256 ") != std::string::npos);
    std::filesystem::remove(folder.path() / library);
    CHECK(refusal_of([&] {
              load_plugins(Bundle(path, Verify::sizes), tensorrt);
          }).find("libdexport_one.so: expected a file of 12 bytes, got no such file") != std::string::npos);
    CHECK(tensorrt.paths.size() == 1);
    ::unsetenv("XDG_CONFIG_HOME");
}

TEST_CASE("what TensorRT says against a library arrives") {
    Watcher tensorrt;
    tensorrt.refusal = "undefined symbol: getCreators";
    CHECK(refused(tensorrt, {}) ==
          ": plugin one: expected a library that TensorRT takes, got undefined symbol: getCreators; finalize the kit on this machine");
}
