// The C interface over Pipeline: checks what comes from outside, keeps every exception inside.
#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <new>
#include <string>

#include "dexport/dexport.h"
#include "error.h"
#include "media.h"
#include "memory.h"
#include "pipeline.h"

struct dexport_pipeline {
    dexport_pipeline(dexport::Bundle bundle, bool keep) : pipeline(std::move(bundle), keep) {}

    dexport::Pipeline pipeline;
};

struct dexport_result {
    dexport::Output output;
};

namespace dexport {
namespace {

std::string& last_error() {
    thread_local std::string text;
    return text;
}

dexport_status report(dexport_status status, const char* text) noexcept {
    try {
        last_error() = text;
    } catch (...) {  // no memory even for the text: the status still says that it failed
        last_error().clear();
    }
    return status;
}

/// Reports what another library threw; only the errors of this one are written to be read.
dexport_status report_foreign(const std::exception& error) noexcept {
    try {
        return report(DEXPORT_FAILURE, ("dexport: expected no error of another library, got " + reason_of(error) + "; report it").c_str());
    } catch (...) {
        return report(DEXPORT_FAILURE, "dexport: expected no error of another library, got one; report it");
    }
}

/// Runs the body of a function of the C interface.
template <typename Body>
dexport_status guarded(const Body& body) noexcept {
    try {
        last_error().clear();
        body();
        return DEXPORT_OK;
    } catch (const Error& error) {
        return report(static_cast<dexport_status>(error.code()), error.what());
    } catch (const std::bad_alloc&) {
        return report(DEXPORT_FAILURE,
                      "memory: expected enough for the request, got none left; make fewer or smaller pictures, or set release_components");
    } catch (const std::exception& error) {
        return report_foreign(error);
    } catch (...) {
        return report(DEXPORT_FAILURE, "dexport: expected no other exception, got one; report it");
    }
}

void require(const void* pointer, const char* name) {
    if (pointer == nullptr) {
        throw user_error(name, "a pointer", "null", "pass one");
    }
}

/// A struct of the caller's as this library knows it: what the caller's version lacks is zero.
template <typename Struct>
Struct read_struct(const Struct* given, const char* name) {
    require(given, name);
    const std::size_t bytes = given->struct_size;
    if (bytes < sizeof bytes || bytes > 16 * sizeof(Struct)) {
        throw user_error(name, "struct_size to be the size of the struct, " + std::to_string(sizeof(Struct)), std::to_string(bytes),
                         "set it to sizeof the struct");
    }
    const auto* raw = reinterpret_cast<const unsigned char*>(given);
    if (std::any_of(raw + std::min(bytes, sizeof(Struct)), raw + bytes, [](unsigned char byte) { return byte != 0; })) {
        throw user_error(name, "fields that this version of the library knows", "others", "use a newer library");
    }
    Struct known{};
    std::memcpy(&known, given, std::min(bytes, sizeof(Struct)));
    return known;
}

/// Fills as much of a caller's struct as its version has.
template <typename Struct>
void write_struct(Struct* target, Struct filled, const char* name) {
    filled.struct_size = read_struct(target, name).struct_size;
    std::memcpy(target, &filled, std::min(filled.struct_size, sizeof(Struct)));
}

void check_index(const char* name, std::size_t index, std::size_t count) {
    if (index >= count) {
        throw user_error(name, "an index below " + std::to_string(count), std::to_string(index), "ask for an existing one");
    }
}

Shape shape_from(const dexport_tensor& tensor, const std::string& where) {
    if (tensor.axes < 1 || tensor.axes > DEXPORT_MAX_AXES) {
        throw user_error(where, "1 to 8 axes", std::to_string(tensor.axes), "set axes to the number of sizes in shape");
    }
    Shape shape(tensor.shape, tensor.shape + tensor.axes);
    std::int64_t elements = 1;
    for (const std::int64_t size : shape) {
        if (size < 1 || __builtin_mul_overflow(elements, size, &elements) || elements > std::int64_t{1} << 40) {
            throw user_error(where, "sizes from 1 whose product is at most 2^40", shape_text(shape), "set shape to the sizes of the array");
        }
    }
    return shape;
}

Tensor tensor_from(const dexport_tensor& given, const std::string& where) {
    if (given.dtype < DEXPORT_BOOL || given.dtype > DEXPORT_FLOAT64) {
        throw user_error(where, "a dtype of dexport_dtype", std::to_string(given.dtype), "set dtype");
    }
    require(given.data, where.c_str());
    // The runtime only reads what a request gives it.
    return {static_cast<Dtype>(given.dtype), shape_from(given, where), static_cast<std::byte*>(const_cast<void*>(given.data))};
}

dexport_tensor tensor_of(const Tensor& tensor, const char* name) {
    dexport_tensor result{name, static_cast<dexport_dtype>(tensor.dtype), static_cast<std::int32_t>(tensor.shape.size()), {}, tensor.data};
    std::copy(tensor.shape.begin(), tensor.shape.end(), result.shape);
    return result;
}

std::optional<std::vector<std::string>> texts_from(const char* const* texts, std::size_t count, const char* name) {
    if (count == 0) {
        return std::nullopt;
    }
    require(texts, name);
    std::vector<std::string> result;
    for (std::size_t index = 0; index < count; ++index) {
        require(texts[index], name);
        result.emplace_back(texts[index]);
    }
    return result;
}

std::optional<std::int64_t> given_number(std::int64_t value, const char* name) {
    if (value < 0) {
        throw user_error(name, "a positive number, or 0 for the default", std::to_string(value), "change it");
    }
    return value == 0 ? std::nullopt : std::optional(value);
}

void set_callbacks(const dexport_request& given, dexport_pipeline* pipeline, Request& request) {
    void* user = given.user;
    if (const auto on_step = given.on_step) {
        request.on_step = [=](std::size_t step, std::size_t steps, double timestep, const Tensor& latents) {
            const dexport_tensor tensor = tensor_of(latents, "latents");
            if (on_step(user, step, steps, timestep, &tensor) != 0) {
                pipeline->pipeline.cancel();
            }
        };
    }
    if (const auto on_trace = given.on_trace) {
        request.on_trace = [=](const std::string& line) { on_trace(user, line.c_str()); };
    }
    if (const auto on_warning = given.on_warning) {
        request.on_warning = [=](const std::string& line) { on_warning(user, line.c_str()); };
    }
}

Request request_from(const dexport_request& given, dexport_pipeline* pipeline) {
    Request request;
    request.prompts = texts_from(given.prompts, given.prompt_count, "prompts");
    request.negative_prompts = texts_from(given.negative_prompts, given.negative_prompt_count, "negative_prompts");
    if (given.class_label_count != 0) {
        require(given.class_labels, "class_labels");
        request.class_labels.emplace(given.class_labels, given.class_labels + given.class_label_count);
    }
    constexpr std::size_t most = std::numeric_limits<std::int64_t>::max();  // refused for what it is, like all absurd numbers
    request.pictures = static_cast<std::int64_t>(std::clamp<std::size_t>(given.pictures, 1, most));
    request.steps = given_number(given.steps, "steps");
    request.height = given_number(given.height, "height");
    request.width = given_number(given.width, "width");
    if (given.guidance != nullptr) {
        request.guidance = *given.guidance;
    }
    if (given.seed_count != 0) {
        require(given.seeds, "seeds");
        request.seeds.assign(given.seeds, given.seeds + given.seed_count);
    }
    if (given.noise != DEXPORT_NOISE_TORCH && given.noise != DEXPORT_NOISE_PHILOX) {
        throw user_error("noise", "a kind of dexport_noise", std::to_string(given.noise), "set noise");
    }
    request.noise = given.noise == DEXPORT_NOISE_TORCH ? NoiseKind::torch : NoiseKind::philox;
    if (given.latents != nullptr) {
        request.latents = tensor_from(*given.latents, "latents");
    }
    for (std::size_t index = 0; index < given.buffer_count; ++index) {
        require(given.buffers, "buffers");
        const std::string where = "buffers[" + std::to_string(index) + "]";
        require(given.buffers[index].name, (where + ".name").c_str());
        request.buffers[given.buffers[index].name] = tensor_from(given.buffers[index], where);
    }
    request.want_latents = given.want_latents != 0;
    set_callbacks(given, pipeline, request);
    return request;
}

const Program& program_at(dexport_pipeline& pipeline, std::size_t index) {
    const std::vector<ProgramEntry>& entries = pipeline.pipeline.bundle().manifest().programs;
    check_index("program", index, entries.size());
    return pipeline.pipeline.program(entries[index]);
}

}  // namespace
}  // namespace dexport

using namespace dexport;

const char* dexport_version(void) {
    return DEXPORT_VERSION;
}

const char* dexport_error(void) {
    return last_error().c_str();
}

uint64_t dexport_peak_memory(void) {
    return peak_memory_bytes();
}

dexport_status dexport_open(const char* path, const dexport_open_options* options, dexport_pipeline** pipeline) {
    return guarded([&] {
        require(pipeline, "pipeline");
        *pipeline = nullptr;
        require(path, "path");
        const dexport_open_options chosen = options == nullptr ? dexport_open_options{} : read_struct(options, "dexport_open_options");
        ReadProgress progress;
        if (chosen.on_progress != nullptr) {
            progress = [&](std::uint64_t done, std::uint64_t total, const std::string& file) {
                chosen.on_progress(chosen.user, done, total, file.c_str());
            };
        }
        const Trust trust = chosen.trust_code != 0 ? Trust::all : Trust::own;
        Bundle bundle(path, chosen.only_sizes != 0 ? Verify::sizes : Verify::full, progress, trust);
        auto opened = std::make_unique<dexport_pipeline>(std::move(bundle), chosen.release_components == 0);
        *pipeline = opened.release();
    });
}

void dexport_close(dexport_pipeline* pipeline) {
    const std::unique_ptr<dexport_pipeline> closed(pipeline);
}

dexport_status dexport_get_info(const dexport_pipeline* pipeline, dexport_info* info) {
    return guarded([&] {
        require(pipeline, "pipeline");
        const Manifest& manifest = pipeline->pipeline.bundle().manifest();
        write_struct(info,
                     {0, manifest.dexport.c_str(), manifest.model.c_str(), manifest.target.c_str(), manifest.precision.c_str(),
                      manifest.guidance_kind.c_str(), manifest.guidance_default, manifest.frames_per_second.value_or(0),
                      manifest.components.size(), manifest.sizes.size(), manifest.programs.size(), manifest.texts.size()},
                     "dexport_info");
    });
}

dexport_status dexport_component(const dexport_pipeline* pipeline, size_t index, const char** name) {
    return guarded([&] {
        require(pipeline, "pipeline");
        require(name, "name");
        const auto& components = pipeline->pipeline.bundle().manifest().components;
        check_index("component", index, components.size());
        *name = components[index].first.c_str();
    });
}

dexport_status dexport_size(const dexport_pipeline* pipeline, size_t index, int64_t* height, int64_t* width) {
    return guarded([&] {
        require(pipeline, "pipeline");
        require(height, "height");
        require(width, "width");
        const auto& sizes = pipeline->pipeline.bundle().manifest().sizes;
        check_index("size", index, sizes.size());
        *height = sizes[index].first;
        *width = sizes[index].second;
    });
}

dexport_status dexport_text_at(const dexport_pipeline* pipeline, size_t index, dexport_text_info* info) {
    return guarded([&] {
        require(pipeline, "pipeline");
        const auto& texts = pipeline->pipeline.bundle().manifest().texts;
        check_index("text", index, texts.size());
        const TextEntry& text = texts[index];
        write_struct(info, {0, text.name.c_str(), text.length, text.ids.c_str(), text.mask ? text.mask->c_str() : nullptr},
                     "dexport_text_info");
    });
}

dexport_status dexport_program_at(dexport_pipeline* pipeline, size_t index, dexport_program_info* info) {
    return guarded([&] {
        require(pipeline, "pipeline");
        const Program& program = program_at(*pipeline, index);
        const ProgramEntry& entry = pipeline->pipeline.bundle().manifest().programs[index];
        write_struct(info, {0, entry.steps, entry.size.first, entry.size.second, entry.guided ? 1 : 0, program.request.size()},
                     "dexport_program_info");
    });
}

dexport_status dexport_input(dexport_pipeline* pipeline, size_t program, size_t index, dexport_input_info* info) {
    return guarded([&] {
        require(pipeline, "pipeline");
        const Program& wanted = program_at(*pipeline, program);
        check_index("input", index, wanted.request.size());
        const std::string& name = wanted.request[index];
        const Buffer& buffer = wanted.buffers.find(name)->second;
        const Shape shape = buffer.shape(1);
        dexport_input_info filled{0,
                                  name.c_str(),
                                  static_cast<dexport_dtype>(buffer.dtype),
                                  static_cast<std::int32_t>(shape.size()),
                                  {},
                                  buffer.rows.per_batch ? 1 : 0};
        std::copy(shape.begin(), shape.end(), filled.shape);
        write_struct(info, filled, "dexport_input_info");
    });
}

dexport_status dexport_run(dexport_pipeline* pipeline, const dexport_request* request, dexport_result** result) {
    return guarded([&] {
        require(result, "result");
        *result = nullptr;
        require(pipeline, "pipeline");
        const Request wanted = request_from(read_struct(request, "dexport_request"), pipeline);
        auto made = std::make_unique<dexport_result>(dexport_result{pipeline->pipeline.run(wanted)});
        *result = made.release();
    });
}

void dexport_cancel(dexport_pipeline* pipeline) {
    if (pipeline != nullptr) {
        pipeline->pipeline.cancel();
    }
}

dexport_status dexport_result_pictures(const dexport_result* result, dexport_tensor* pictures) {
    return guarded([&] {
        require(result, "result");
        require(pictures, "pictures");
        *pictures = tensor_of(result->output.pictures.tensor, "pictures");
    });
}

dexport_status dexport_result_latents(const dexport_result* result, dexport_tensor* latents) {
    return guarded([&] {
        require(result, "result");
        require(latents, "latents");
        if (!result->output.latents) {
            throw user_error("latents", "a request with want_latents set", "one without", "set it to 1");
        }
        *latents = tensor_of(result->output.latents->tensor, "latents");
    });
}

double dexport_result_seconds(const dexport_result* result, const char* component) {
    if (result == nullptr) {
        return 0;
    }
    const auto& seconds = result->output.seconds;
    const auto found = seconds.find(std::string_view(component == nullptr ? "total" : component));
    return found == seconds.end() ? 0 : found->second;
}

const char* dexport_result_program(const dexport_result* result) {
    return result == nullptr ? "" : result->output.program.c_str();
}

void dexport_result_free(dexport_result* result) {
    const std::unique_ptr<dexport_result> freed(result);
}

dexport_status dexport_check_output(const char* path, int32_t video) {
    return guarded([&] {
        require(path, "path");
        check_output(path, video != 0);
    });
}

dexport_status dexport_save(const dexport_tensor* pictures, const char* path, void (*on_file)(void* user, const char* file), void* user) {
    return guarded([&] {
        require(pictures, "pictures");
        require(path, "path");
        for (const auto& file : save(tensor_from(*pictures, "pictures"), path)) {
            if (on_file != nullptr) {
                on_file(user, file.c_str());
            }
        }
    });
}
