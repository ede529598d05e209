#include <doctest/doctest.h>

#include "engines.h"
#include "sample_bundle.h"

using namespace dexport;

namespace {

std::string refusal(const char* format, bool native) {
    const Folder folder;
    const Bundle bundle(write_sample_bundle(folder.path(), [&](Json& manifest) {
        Json& variant = manifest["components"]["decoder"]["variants"][0];
        variant["format"] = format, variant["native"] = native;
    }));
    const std::string text = refusal_of([&] { check_formats(bundle); });
    return text.substr(std::min(text.size(), folder.path().string().size()));
}

}  // namespace

TEST_CASE("formats that this build cannot run are refused") {
    CHECK(refusal("openvino", false).empty());
    CHECK(refusal("onnx", false) ==
          ": decoder: expected a format that this build of the library runs, openvino, got onnx; "
          "rebuild with --target cpu, or run it with the Python package");
    CHECK(refusal("tensorrt", true).find("got tensorrt") != std::string::npos);
    CHECK(refusal("tensorrt-kit", false)
              .find(": decoder: expected engines, got a build kit for a device; run on the device: dexport finalize") == 0);
}

TEST_CASE("an engine is opened for the size that it was built for") {
    const Folder folder;
    const Bundle bundle(
        write_sample_bundle(folder.path(), [](Json& manifest) { manifest["components"]["decoder"]["variants"][0]["size"] = {8, 8}; }));
    CHECK(refusal_of([&] {
              static_cast<void>(open_engine(bundle, "decoder", {4, 4}));
          }).find("decoder: expected a size among 8x8, got 4x4") != std::string::npos);
    CHECK(open_engine(bundle, "decoder", {8, 8}) != nullptr);
}
