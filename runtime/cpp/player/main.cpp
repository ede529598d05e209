// dexport-run: pictures from a bundle, with the flags of `dexport run`. Uses nothing of the library but its public interface.
//
// Exit codes: 0 done; 1 something broke; 2 the request was wrong; 130 interrupted.

#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "arguments.h"
#include "dexport/dexport.hpp"
#include "interrupt.h"
#include "noise_file.h"
#include "progress.h"

namespace player {
namespace {

constexpr double mebibyte = 1024.0 * 1024.0;

/// What is told at the end.
struct Summary {
    std::vector<std::string> files;
    std::uint64_t seed;
    std::vector<std::int64_t> shape;  // without the axis of frames where pictures have only one
    std::string program;
    double load_seconds;
    double make_seconds;
};

dexport::Request request_from(const Arguments& arguments, std::uint64_t seed, const std::optional<NoiseFile>& noise) {
    dexport::Request request;
    if (arguments.prompt) {
        request.prompts = {*arguments.prompt};
    }
    if (arguments.negative_prompt) {
        request.negative_prompts = {*arguments.negative_prompt};
    }
    if (arguments.class_label) {
        request.class_labels = {*arguments.class_label};
    }
    request.pictures = static_cast<std::size_t>(arguments.count);
    request.steps = arguments.steps;
    request.height = arguments.height;
    request.width = arguments.width;
    request.guidance = arguments.guidance;
    request.seeds = {seed};
    if (noise) {
        request.latents = noise->tensor();
    }
    if (arguments.verbose) {
        request.on_trace = [](const char* line) { std::fprintf(stderr, "%s\n", line); };
    }
    request.on_warning = [](const char* line) { std::fprintf(stderr, "WARNING: %s\n", line); };
    return request;
}

/// Refuses a bad name for the output before the files of the bundle are compared, which takes time.
void check_output(const Arguments& arguments) {
    if (dexport_check_output(arguments.output.c_str(), 0) == DEXPORT_OK) {
        return;
    }
    dexport::OpenOptions quick;  // what to do instead depends on what the bundle makes
    quick.only_sizes = true;
    const bool video = dexport::Pipeline(arguments.bundle, quick).info().frames_per_second > 0;
    dexport::check(dexport_check_output(arguments.output.c_str(), video ? 1 : 0));
}

dexport::Pipeline open(const Arguments& arguments, Progress& progress) {
    dexport::OpenOptions options;
    options.release_components = arguments.release;
    options.trust_code = arguments.trust;
    const std::string stage = "load " + arguments.bundle;
    options.on_progress = [&](std::uint64_t done, std::uint64_t total, const char*) {
        progress.report(stage, static_cast<double>(done) / static_cast<double>(total));
    };
    return dexport::Pipeline(arguments.bundle, options);
}

dexport::Result make(const dexport::Pipeline& pipeline, dexport::Request& request, Progress& progress) {
    const Interrupt interrupt(pipeline.handle());
    progress.report("make", 0.0);
    request.on_step = [&](std::size_t step, std::size_t steps, double, const dexport_tensor&) {
        progress.report("make", static_cast<double>(step + 1) / static_cast<double>(steps));
        return true;
    };
    return pipeline.run(request);
}

std::vector<std::int64_t> shape_of(const dexport::Result& result) {
    const dexport_tensor tensor = result.pictures();
    std::vector<std::int64_t> shape(tensor.shape, tensor.shape + tensor.axes);
    if (shape[1] == 1) {
        shape.erase(shape.begin() + 1);
    }
    return shape;
}

Summary run(const Arguments& arguments) {
    using Clock = std::chrono::steady_clock;
    const auto seconds = [](Clock::time_point from, Clock::time_point to) { return std::chrono::duration<double>(to - from).count(); };
    const auto noise = arguments.noise ? std::optional<NoiseFile>(*arguments.noise) : std::nullopt;
    check_output(arguments);
    const std::uint64_t seed = arguments.seed.value_or(std::random_device()());
    Progress progress;
    const auto start = Clock::now();
    const dexport::Pipeline pipeline = open(arguments, progress);
    const auto loaded = Clock::now();
    dexport::Request request = request_from(arguments, seed, noise);
    const dexport::Result result = make(pipeline, request, progress);
    const auto made = Clock::now();
    return {result.save(arguments.output), seed, shape_of(result), result.program(), seconds(start, loaded), seconds(loaded, made)};
}

void print(const Summary& summary, bool json) {
    const auto milliseconds = [](double seconds) { return std::round(seconds * 1000) / 1000; };
    if (json) {
        const nlohmann::ordered_json document = {{"files", summary.files},
                                                 {"seed", summary.seed},
                                                 {"shape", summary.shape},
                                                 {"program", summary.program},
                                                 {"load_s", milliseconds(summary.load_seconds)},
                                                 {"make_s", milliseconds(summary.make_seconds)},
                                                 {"peak_memory_bytes", dexport_peak_memory()}};
        std::printf("%s\n", document.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
        return;
    }
    const std::string& last = summary.files.back();
    const std::string others = summary.files.size() == 1 ? "" : " to " + last.substr(last.rfind('/') + 1);
    std::printf("wrote %s%s (seed %llu, loaded in %.1f s, made in %.1f s, peak memory %.0f MiB)\n", summary.files.front().c_str(),
                others.c_str(), static_cast<unsigned long long>(summary.seed), summary.load_seconds, summary.make_seconds,
                static_cast<double>(dexport_peak_memory()) / mebibyte);
}

int fail(const std::string& text, int status) {
    std::fprintf(stderr, "error: %s\n", text.c_str());
    return status;
}

}  // namespace
}  // namespace player

int main(int count, char** texts) {
    try {
        player::Interrupt::install();
        if (const auto arguments = player::read_arguments(count, texts)) {
            player::print(player::run(*arguments), arguments->json);
        }
        return 0;
    } catch (const dexport::Error& error) {
        if (error.status() == DEXPORT_CANCELLED) {
            std::fprintf(stderr, "interrupted\n");
            return 130;
        }
        return player::fail(error.what(), error.status() == DEXPORT_USER_ERROR ? 2 : 1);
    } catch (const player::UserError& error) {
        return player::fail(error.what(), 2);
    } catch (const std::exception& error) {
        return player::fail(error.what(), 1);
    }
}
