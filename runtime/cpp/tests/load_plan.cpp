// Loads plugins and an engine with the TensorRT that this is linked to, and says what came of it; for tests/runtime/cpp/test_tensorrt.py.
#include <cstdio>
#include <exception>
#include <filesystem>

#include "backends/tensorrt.h"
#include "error.h"

int main(int count, char** texts) {
    if (count < 2) {
        std::fprintf(stderr, "usage: load_plan PLAN [LIBRARY...]\n");
        return 2;
    }
    try {
        const std::filesystem::path path = texts[1];
        const dexport::File file(path);
        const auto plan = std::make_shared<const dexport::Mapping>(file, 0, file.size());
        const auto tensorrt = dexport::start_tensorrt();
        std::printf("%s started\n", dexport::tensorrt_format().c_str());
        for (int index = 2; index < count; ++index) {
            const std::string said = tensorrt->load_plugin(texts[index]);
            std::printf("%s: %s\n", std::filesystem::path(texts[index]).filename().c_str(), said.empty() ? "loaded" : said.c_str());
        }
        const auto engine = tensorrt->open(plan, {}, "", path.filename().string());
        std::printf("loaded\n");
        return 0;
    } catch (const dexport::Error& error) {
        std::printf("%s\n", error.what());
        return static_cast<int>(error.code());
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 3;
    }
}
