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
          ": decoder: expected a build of dexport that runs onnx, got this one, which has OpenVINO and no TensorRT; "
          "rebuild with --target cpu, or run it with the Python package");
    CHECK(refusal("tensorrt", true) ==
          ": decoder: expected a build of dexport that runs tensorrt, got this one, which has OpenVINO and no TensorRT; "
          "build the library with the preset tensorrt, or run it with the Python package");
    CHECK(refusal("tensorrt-kit", false)
              .find(": decoder: expected engines, got a build kit for a device; run on the device: dexport finalize") == 0);
}

TEST_CASE("an engine is opened for the size that it was built for") {
    const Folder folder;
    const Bundle bundle(
        write_sample_bundle(folder.path(), [](Json& manifest) { manifest["components"]["decoder"]["variants"][0]["size"] = {8, 8}; }));
    Backends backends;
    CHECK(refusal_of([&] {
              static_cast<void>(open_engine(bundle, "decoder", {4, 4}, backends));
          }).find("decoder: expected a size among 8x8, got 4x4") != std::string::npos);
    CHECK(open_engine(bundle, "decoder", {8, 8}, backends) != nullptr);
}
