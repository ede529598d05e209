#include "engines.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "backends/openvino.h"
#include "error.h"
#include "plugins.h"

namespace dexport {
namespace {

namespace fs = std::filesystem;

/// The compiled form of a component that serves a size.
const Variant& variant_for(const Bundle& bundle, const std::string& component, const Size& size) {
    const std::vector<Variant>& variants = bundle.manifest().component(component)->variants;
    std::string sizes;
    for (const Variant& variant : variants) {
        if (!variant.size || *variant.size == size) {
            return variant;
        }
        sizes += (sizes.empty() ? "" : ", ") + size_text(*variant.size);
    }
    throw user_error(bundle.path() + ": " + component, "a size among " + sizes, size_text(size), "rebuild with --size");
}

/// Folder for what backends compile when they load: their own keys hold model, version and processor. Empty: none can be made.
std::string compile_cache() {
    const char* given = std::getenv("DEXPORT_CACHE_DIR");
    const char* home = std::getenv("HOME");
    fs::path folder;
    if (given != nullptr && *given != '\0') {
        folder = given;
    } else if (home != nullptr && *home != '\0') {
        folder = fs::path(home) / ".cache" / "dexport";
    } else {
        return {};
    }
    std::error_code problem;
    fs::create_directories(folder / "compiled", problem);
    return problem ? std::string() : (folder / "compiled").string();
}

/// File for what TensorRT-RTX compiles when it loads an engine; empty: none can be made.
std::string kernel_cache(const Bundle& bundle, const Variant& variant) {
    const std::string folder = compile_cache();
    return folder.empty() ? folder : folder + "/" + bundle.manifest().file(variant.artifact)->sha256 + ".kernels";
}

/// "OpenVINO and no TensorRT".
std::string backends_text() {
    const std::string format = tensorrt_format();
    return format.empty() ? "OpenVINO and no TensorRT" : "OpenVINO and " + std::string(format == "tensorrt" ? "TensorRT" : "TensorRT-RTX");
}

}  // namespace

void check_formats(const Bundle& bundle) {
    for (const auto& [name, component] : bundle.manifest().components) {
        for (const Variant& variant : component.variants) {
            const std::string where = bundle.path() + ": " + name;
            const std::size_t suffix = variant.format.rfind("-kit");
            if (suffix != std::string::npos && suffix + 4 == variant.format.size()) {
                throw user_error(where, "engines", "a build kit for a device", "run on the device: dexport finalize " + bundle.path());
            }
            if (variant.format != "openvino" && variant.format != tensorrt_format()) {
                throw user_error(where, "a build of dexport that runs " + variant.format, "this one, which has " + backends_text(),
                                 variant.format == "onnx"
                                     ? "rebuild with --target cpu, or run it with the Python package"
                                     : "build the library with the preset " + variant.format + ", or run it with the Python package");
            }
        }
    }
}

std::unique_ptr<Engine> open_engine(const Bundle& bundle, const std::string& component, const Size& size, Backends& backends) {
    const Variant& variant = variant_for(bundle, component, size);
    const std::string name = bundle.path() + ": " + component;
    if (variant.format == tensorrt_format()) {
        const std::shared_ptr<const Mapping> plan = bundle.map(variant.artifact);
        if (backends.tensorrt == nullptr) {
            const std::shared_ptr<TensorRt> started = start_tensorrt();
            load_plugins(bundle, *started);
            backends.tensorrt = started;
        }
        return backends.tensorrt->open(plan, variant.sms, kernel_cache(bundle, variant), name);
    }
    const auto weights = std::find_if(variant.files.begin(), variant.files.end(), [](const std::string& file) {
        return file.size() > 4 && file.compare(file.size() - 4, 4, ".bin") == 0;
    });
    if (weights == variant.files.end()) {
        throw user_error(name, "a .bin file with weights", std::to_string(variant.files.size()) + " other files", "rebuild the bundle");
    }
    const std::string& precision = bundle.manifest().component(component)->precision;
    return open_openvino(bundle.read(variant.artifact), bundle.map(*weights), precision, compile_cache(), name);
}

}  // namespace dexport
