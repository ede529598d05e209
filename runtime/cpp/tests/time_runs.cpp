// Prints what runs of a bundle cost, one JSON object a line: {"open": s} and for every run {"total": s, "components": s}.
// Usage: time_runs BUNDLE PROMPT RUNS. For benchmarks/cpp_runtime.py.
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "dexport/dexport.hpp"

int main(int, char** arguments) {
    const auto start = std::chrono::steady_clock::now();
    const dexport::Pipeline pipeline(arguments[1]);
    std::printf("{\"open\": %.6f}\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    dexport::Request request;
    request.prompts = {arguments[2]};
    request.seeds = {1};
    for (int run = 0; run < std::atoi(arguments[3]); ++run) {
        const dexport::Result result = pipeline.run(request);
        double components = 0;
        for (const std::string& name : pipeline.components()) {
            components += result.seconds(name);
        }
        std::printf("{\"total\": %.6f, \"components\": %.6f}\n", result.seconds(), components);
        std::fflush(stdout);
    }
}
