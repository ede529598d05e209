/// C++17 over the C interface: exceptions, owners, containers. Header only, so that compiler and library may differ.
///
///     dexport::Pipeline pipeline("shapes.dxb");
///     dexport::Request request;
///     request.prompts = {"a small red circle"};
///     request.seeds = {7};
///     dexport::Result result = pipeline.run(request);
///     auto [pictures, frames, height, width] = result.size();
///     const std::uint8_t* rgb = result.pixels();
///
/// What threads may do is said in dexport.h.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dexport/dexport.h"

namespace dexport {
// The library has classes of the same names inside; an inline namespace keeps the two apart where it is linked statically.
inline namespace v1 {

/// A status that is not DEXPORT_OK, with its text.
class Error : public std::runtime_error {
public:
    explicit Error(dexport_status status) : std::runtime_error(dexport_error()), status_(status) {}
    [[nodiscard]] dexport_status status() const noexcept { return status_; }

private:
    dexport_status status_;
};

/// Throws an Error unless a function of the C interface did what it should.
inline void check(dexport_status status) {
    if (status != DEXPORT_OK) {
        throw Error(status);
    }
}

/// See dexport_open_options.
struct OpenOptions {
    bool only_sizes = false;
    bool release_components = false;
    bool trust_code = false;
    std::function<void(std::uint64_t done, std::uint64_t total, const char* file)> on_progress;
};

/// See dexport_request; empty means the default.
struct Request {
    std::vector<std::string> prompts;
    std::vector<std::string> negative_prompts;
    std::vector<std::int64_t> class_labels;
    std::size_t pictures = 1;
    std::int64_t steps = 0;
    std::int64_t height = 0;
    std::int64_t width = 0;
    std::optional<double> guidance;
    std::vector<std::uint64_t> seeds;
    dexport_noise noise = DEXPORT_NOISE_TORCH;
    std::optional<dexport_tensor> latents;
    std::vector<dexport_tensor> buffers;
    bool want_latents = false;
    /// False stops the run. Callbacks must not throw.
    std::function<bool(std::size_t step, std::size_t steps, double timestep, const dexport_tensor& latents)> on_step;
    std::function<void(const char* line)> on_trace;
    std::function<void(const char* line)> on_warning;
};

/// What a run made.
class Result {
public:
    explicit Result(dexport_result* result) : result_(result, dexport_result_free) {}

    /// Pictures, frames, height, width.
    [[nodiscard]] std::array<std::size_t, 4> size() const {
        const dexport_tensor tensor = pictures();
        std::array<std::size_t, 4> size{};
        for (std::size_t axis = 0; axis < size.size(); ++axis) {
            size[axis] = static_cast<std::size_t>(tensor.shape[axis]);
        }
        return size;
    }

    /// RGB, 8 bits each, in the order of `size`.
    [[nodiscard]] const std::uint8_t* pixels() const { return static_cast<const std::uint8_t*>(pictures().data); }

    [[nodiscard]] dexport_tensor pictures() const {
        dexport_tensor tensor{};
        check(dexport_result_pictures(result_.get(), &tensor));
        return tensor;
    }

    /// The latents of the last step, if the request wanted them.
    [[nodiscard]] dexport_tensor latents() const {
        dexport_tensor tensor{};
        check(dexport_result_latents(result_.get(), &tensor));
        return tensor;
    }

    /// Wall seconds of a component, or of the whole run.
    [[nodiscard]] double seconds(const std::string& component = "") const {
        return dexport_result_seconds(result_.get(), component.empty() ? nullptr : component.c_str());
    }

    [[nodiscard]] std::string program() const { return dexport_result_program(result_.get()); }

    /// Writes the pictures, or the frames of videos, to OUT.png, OUT-0.png, ... or OUT.npy; see dexport_save.
    std::vector<std::string> save(const std::string& path) const {
        dexport_tensor tensor = pictures();
        if (tensor.shape[1] == 1) {  // a frame alone is a picture
            std::copy(tensor.shape + 2, tensor.shape + 5, tensor.shape + 1);
            tensor.axes = 4;
        }
        std::vector<std::string> files;
        const auto on_file = [](void* user, const char* file) { static_cast<std::vector<std::string>*>(user)->emplace_back(file); };
        check(dexport_save(&tensor, path.c_str(), on_file, &files));
        return files;
    }

private:
    std::unique_ptr<dexport_result, void (*)(dexport_result*)> result_;
};

/// An opened bundle.
class Pipeline {
public:
    explicit Pipeline(const std::string& path, const OpenOptions& options = {}) : pipeline_(opened(path, options), dexport_close) {}

    [[nodiscard]] Result run(const Request& request) const {
        const std::vector<const char*> prompts = pointers(request.prompts), negatives = pointers(request.negative_prompts);
        dexport_request given{};
        given.struct_size = sizeof given;
        given.prompts = prompts.data(), given.prompt_count = prompts.size();
        given.negative_prompts = negatives.data(), given.negative_prompt_count = negatives.size();
        given.class_labels = request.class_labels.data(), given.class_label_count = request.class_labels.size();
        given.pictures = request.pictures;
        given.steps = request.steps, given.height = request.height, given.width = request.width;
        given.guidance = request.guidance ? &*request.guidance : nullptr;
        given.seeds = request.seeds.data(), given.seed_count = request.seeds.size();
        given.noise = request.noise;
        given.latents = request.latents ? &*request.latents : nullptr;
        given.buffers = request.buffers.data(), given.buffer_count = request.buffers.size();
        given.want_latents = request.want_latents ? 1 : 0;
        given.user = const_cast<Request*>(&request);
        given.on_step = request.on_step ? on_step : nullptr;
        given.on_trace = request.on_trace ? on_trace : nullptr;
        given.on_warning = request.on_warning ? on_warning : nullptr;
        dexport_result* result = nullptr;
        check(dexport_run(pipeline_.get(), &given, &result));
        return Result(result);
    }

    /// Makes the current run stop; from any thread.
    void cancel() const { dexport_cancel(pipeline_.get()); }

    [[nodiscard]] dexport_info info() const {
        dexport_info info{};
        info.struct_size = sizeof info;
        check(dexport_get_info(pipeline_.get(), &info));
        return info;
    }

    [[nodiscard]] std::vector<std::string> components() const {
        std::vector<std::string> names(info().components);
        for (std::size_t index = 0; index < names.size(); ++index) {
            const char* name = nullptr;
            check(dexport_component(pipeline_.get(), index, &name));
            names[index] = name;
        }
        return names;
    }

    /// Height and width in pixels; the first is the default.
    [[nodiscard]] std::vector<std::pair<std::int64_t, std::int64_t>> sizes() const {
        std::vector<std::pair<std::int64_t, std::int64_t>> sizes(info().sizes);
        for (std::size_t index = 0; index < sizes.size(); ++index) {
            check(dexport_size(pipeline_.get(), index, &sizes[index].first, &sizes[index].second));
        }
        return sizes;
    }

    [[nodiscard]] std::vector<dexport_text_info> texts() const {
        std::vector<dexport_text_info> texts(info().texts);
        for (std::size_t index = 0; index < texts.size(); ++index) {
            texts[index].struct_size = sizeof texts[index];
            check(dexport_text_at(pipeline_.get(), index, &texts[index]));
        }
        return texts;
    }

    [[nodiscard]] std::vector<dexport_program_info> programs() const {
        std::vector<dexport_program_info> programs(info().programs);
        for (std::size_t index = 0; index < programs.size(); ++index) {
            programs[index].struct_size = sizeof programs[index];
            check(dexport_program_at(pipeline_.get(), index, &programs[index]));
        }
        return programs;
    }

    /// What a request of a program fills.
    [[nodiscard]] std::vector<dexport_input_info> inputs(std::size_t program) const {
        dexport_program_info info{};
        info.struct_size = sizeof info;
        check(dexport_program_at(pipeline_.get(), program, &info));
        std::vector<dexport_input_info> inputs(info.inputs);
        for (std::size_t index = 0; index < inputs.size(); ++index) {
            inputs[index].struct_size = sizeof inputs[index];
            check(dexport_input(pipeline_.get(), program, index, &inputs[index]));
        }
        return inputs;
    }

    /// For functions of the C interface that have no method here.
    [[nodiscard]] dexport_pipeline* handle() const { return pipeline_.get(); }

private:
    static dexport_pipeline* opened(const std::string& path, const OpenOptions& options) {
        dexport_open_options given{};
        given.struct_size = sizeof given;
        given.only_sizes = options.only_sizes ? 1 : 0;
        given.release_components = options.release_components ? 1 : 0;
        given.trust_code = options.trust_code ? 1 : 0;
        given.on_progress = options.on_progress ? on_progress : nullptr;
        given.user = const_cast<OpenOptions*>(&options);
        dexport_pipeline* pipeline = nullptr;
        check(dexport_open(path.c_str(), &given, &pipeline));
        return pipeline;
    }

    static std::vector<const char*> pointers(const std::vector<std::string>& texts) {
        std::vector<const char*> result;
        for (const std::string& text : texts) {
            result.push_back(text.c_str());
        }
        return result;
    }

    static void on_progress(void* user, std::uint64_t done, std::uint64_t total, const char* file) {
        static_cast<const OpenOptions*>(user)->on_progress(done, total, file);
    }
    static std::int32_t on_step(void* user, std::size_t step, std::size_t steps, double timestep, const dexport_tensor* latents) {
        return static_cast<const Request*>(user)->on_step(step, steps, timestep, *latents) ? 0 : 1;
    }
    static void on_trace(void* user, const char* line) { static_cast<const Request*>(user)->on_trace(line); }
    static void on_warning(void* user, const char* line) { static_cast<const Request*>(user)->on_warning(line); }

    std::unique_ptr<dexport_pipeline, void (*)(dexport_pipeline*)> pipeline_;
};

}  // namespace v1
}  // namespace dexport
