#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

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
    const std::string format = tensorrt_format();
    const std::string got = std::string(", got this one, which has OpenVINO and ") + (format.empty()         ? "no TensorRT"
                                                                                      : format == "tensorrt" ? "TensorRT"
                                                                                                             : "TensorRT-RTX");
    CHECK(refusal("onnx", false) ==
          ": decoder: expected a build of dexport that runs onnx" + got + "; rebuild with --target cpu, or run it with the Python package");
    for (const char* each : {"tensorrt", "tensorrt-rtx"}) {
        CHECK(refusal(each, true) == (each == format
                                          ? ""
                                          : ": decoder: expected a build of dexport that runs " + std::string(each) + got +
                                                "; build the library with the preset " + each + ", or run it with the Python package"));
    }
    CHECK(refusal("tensorrt-kit", false)
              .find(": decoder: expected engines, got a build kit for a device; run on the device: dexport finalize") == 0);
}

TEST_CASE("a build without TensorRT says so") {
    if (tensorrt_format().empty()) {
        CHECK(refusal_of([] { static_cast<void>(start_tensorrt()); }) ==
              "TensorRT: expected a build of dexport with it, got this one, which has none; build the library with the preset tensorrt or "
              "tensorrt-rtx");
    }
}

TEST_CASE("an engine is opened for the size that it was built for") {
    const Folder folder;
    const Bundle bundle(write_sample_bundle(folder.path(), [](Json& manifest) {
        manifest["components"]["decoder"]["variants"][0]["size"] = {8, 8};
    }));
    Backends backends;
    CHECK(refusal_of([&] {
              static_cast<void>(open_engine(bundle, "decoder", {4, 4}, backends));
          }).find("decoder: expected a size among 8x8, got 4x4") != std::string::npos);
    CHECK(open_engine(bundle, "decoder", {8, 8}, backends) != nullptr);
}

TEST_CASE("an engine of TensorRT is loaded only where it is trusted, and needs a driver") {
    if (tensorrt_format().empty()) {
        return;  // the presets tensorrt and tensorrt-rtx go on
    }
    const Folder folder, configuration;
    ::setenv("XDG_CONFIG_HOME", configuration.path().c_str(), 1);
    const std::filesystem::path path = write_sample_bundle(folder.path(), [](Json& manifest) {
        Json& variant = manifest["components"]["decoder"]["variants"][0];
        variant["format"] = tensorrt_format(), variant["native"] = true;
    });
    Backends backends;
    const auto refused = [&](Trust trust) {
        const Bundle bundle(path, Verify::full, {}, trust);
        check_formats(bundle);
        return refusal_of([&] { static_cast<void>(open_engine(bundle, "decoder", {4, 4}, backends)); });
    };
    CHECK(refused(Trust::own).find("got code from elsewhere; build it here") != std::string::npos);
    const std::string trusted = refused(Trust::all);
    CHECK((trusted.find("CUDA: expected an NVIDIA GPU") == 0 ||
           trusted.find("decoder: expected an engine for this GPU") != std::string::npos));
    ::unsetenv("XDG_CONFIG_HOME");
}
