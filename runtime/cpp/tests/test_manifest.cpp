#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "manifest.h"
#include "sample_bundle.h"

using namespace dexport;

// Every rule of the manifest is compared with the Python reader in tests/runtime/cpp/test_readers.py.

namespace {

/// The sample's manifest after `edit`.
Json document(const std::function<void(Json&)>& edit) {
    const Folder folder;
    Json result;
    write_sample_bundle(folder.path(), [&](Json& manifest) {
        edit(manifest);
        result = manifest;
    });
    return result;
}

std::string refusal(const std::function<void(Json&)>& edit) {
    return refusal_of([&] { static_cast<void>(manifest_from_json(document(edit).dump(), "manifest.json")); });
}

}  // namespace

TEST_CASE("a manifest is read in its order") {
    const Manifest manifest = manifest_from_json(document([](Json&) {}).dump(), "manifest.json");
    CHECK(manifest.components.front().first == "denoiser");
    CHECK(std::get<std::string>(manifest.component("decoder")->inputs.at("x").shape[0]) == "batch");
    CHECK(manifest.component("encoder") == nullptr);
    CHECK(manifest.programs.front().size == Size{4, 4});
    CHECK(manifest.files.size() == 5);
}

TEST_CASE("machine code is known by its mark and by its name") {
    const Manifest manifest = manifest_from_json(document([](Json& each) {
                                                     Json& variant = each["components"]["decoder"]["variants"][0];
                                                     variant["native"] = true;
                                                     variant["kernels"] = {{"accelerators", {"sm87", "sm110", "gpu", 7, "sm99999999"}}};
                                                     each["files"]["plugins/one.SO"] = {{"sha256", std::string(64, '0')}, {"bytes", 1}};
                                                 }).dump(),
                                                 "manifest.json");
    CHECK(manifest.native_files() == std::set<std::string>{"engines/decoder.bin", "engines/decoder.xml", "plugins/one.SO"});
    CHECK(manifest.component("decoder")->variants[0].sms == std::vector<int>{87, 110});
    CHECK(manifest.component("denoiser")->variants[0].sms.empty());
    CHECK(manifest.file("plugins/one.SO")->bytes == 1);
    CHECK(manifest.file("none") == nullptr);
}

TEST_CASE("plugins are machine code, and so are their sources") {
    const auto with = [](const Json& plugin) {
        return document([&](Json& each) {
                   each["files"]["plugins/one.cpp"] = {{"sha256", std::string(64, '0')}, {"bytes", 1}};
                   each["plugins"] = Json::array({plugin});
               })
            .dump();
    };
    const Json library = {{"name", "one"}, {"files", Json::array({"plugins/one.cpp"})}, {"sm", 87}, {"tensorrt", "10.3.0"}};
    const Manifest finished = manifest_from_json(with(library), "manifest.json");
    CHECK(finished.plugins.front().sm == 87);
    CHECK(finished.plugins.front().tensorrt == "10.3.0");
    CHECK(finished.native_files() == std::set<std::string>{"plugins/one.cpp"});
    const Json sources = {{"name", "one"}, {"files", Json::array({"plugins/one.cpp"})}, {"sm", nullptr}, {"tensorrt", nullptr}};
    const Manifest kit = manifest_from_json(with(sources), "manifest.json");
    CHECK(!kit.plugins.front().sm.has_value());
    CHECK(kit.native_files() == std::set<std::string>{"plugins/one.cpp"});
    CHECK(manifest_from_json(document([](Json&) {}).dump(), "manifest.json").plugins.empty());
}

TEST_CASE("a newer schema names what can read it") {
    CHECK(
        refusal([](Json& manifest) { manifest["schema"] = 2, manifest["dexport"] = "3.0"; }) ==
        "manifest.json: expected bundle schema 1 or older, got schema 2, written by dexport 3.0; install dexport 3.0 or newer to read it");
}

TEST_CASE("names that do not fit together are refused") {
    CHECK(refusal([](Json& manifest) { manifest["report"] = "no.html"; }) ==
          "manifest.json: report: expected 'no.html' listed under files, got 5 other files; get the bundle again or rebuild it");
    CHECK(refusal([](Json& manifest) {
              manifest["files"]["Programs/toy.json"] = manifest["files"]["programs/toy.json"];
          }).find("expected file names that differ by more than case") != std::string::npos);
    CHECK(refusal([](Json& manifest) {
              manifest["files"]["../x"] = manifest["files"]["programs/toy.json"];
          }).find("files: expected a plain relative path") != std::string::npos);
}
