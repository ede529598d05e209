// Makes one picture from a bundle: example BUNDLE "PROMPT" OUT.png [SEED]
#include <dexport/dexport.hpp>

#include <cstdio>
#include <cstdlib>
#include <exception>

int main(int count, char** arguments) {
    if (count < 4) {
        std::fprintf(stderr, "usage: %s BUNDLE PROMPT OUT.png [SEED]\n", arguments[0]);
        return 2;
    }
    try {
        const dexport::Pipeline pipeline(arguments[1]);

        dexport::Request request;
        request.prompts = {arguments[2]};
        if (count > 4) {
            request.seeds = {std::strtoull(arguments[4], nullptr, 10)};
        }
        request.on_step = [](std::size_t step, std::size_t steps, double, const dexport_tensor&) {
            std::fprintf(stderr, "\rstep %zu of %zu", step + 1, steps);
            return true;  // false stops the run
        };
        request.on_warning = [](const char* line) { std::fprintf(stderr, "%s\n", line); };

        const dexport::Result result = pipeline.run(request);
        const auto size = result.size();  // pictures, frames, height, width
        std::fprintf(stderr, "\n%zu x %zu pixels in %.1f s\n", size[2], size[3], result.seconds());

        // The pixels are at result.pixels(), 3 bytes each; here they go to a file.
        for (const std::string& file : result.save(arguments[3])) {
            std::printf("%s\n", file.c_str());
        }
        return 0;
    } catch (const dexport::Error& error) {
        std::fprintf(stderr, "\n%s\n", error.what());
        return error.status();
    }
}
