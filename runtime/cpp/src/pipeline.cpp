#include "pipeline.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <set>

#include "error.h"
#include "given.h"
#include "noise.h"
#include "program_check.h"
#include "request.h"

namespace dexport {
namespace {

using Clock = std::chrono::steady_clock;
constexpr const char* guidance_scale = "guidance_scale";
constexpr const char* sample = "sample";  // the buffer that holds the latents after each step
constexpr std::int64_t max_pictures = 65536;  // of one request; what the manifest's schema allows as a batch

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Every entry `repeats` times in a row, as diffusers orders pictures.
template <typename Item>
std::optional<std::vector<Item>> repeated(const std::optional<std::vector<Item>>& items, std::int64_t repeats) {
    if (!items) {
        return std::nullopt;
    }
    std::vector<Item> result;
    for (const Item& item : *items) {
        result.insert(result.end(), static_cast<std::size_t>(repeats), item);
    }
    return result;
}

std::optional<std::vector<std::string>> negatives_of(const Request& request, std::int64_t pictures) {
    const auto& given = request.negative_prompts;
    if (!given) {
        return std::nullopt;
    }
    if (given->size() == 1) {
        return std::vector<std::string>(static_cast<std::size_t>(pictures), given->front());
    }
    const std::int64_t prompts = pictures / request.pictures;
    if (static_cast<std::int64_t>(given->size()) != prompts) {
        const std::string expected = "one negative prompt, or one per prompt (" + std::to_string(prompts) + ")";
        throw user_error("negative prompt", expected, std::to_string(given->size()), "give as many");
    }
    return repeated(given, request.pictures);
}

/// How many pictures a request makes; where the caller filled the inputs, their rows are those of `pictures`.
std::int64_t pictures_of(const Request& request) {
    const std::size_t conditions = request.prompts ? request.prompts->size() : request.class_labels ? request.class_labels->size() : 1;
    if (conditions == 0 || request.pictures < 1) {
        throw user_error("request", "at least one picture", "none", "give a prompt or a class label, and a number of pictures");
    }
    if (request.pictures > max_pictures / static_cast<std::int64_t>(conditions)) {
        throw user_error("request", "at most " + std::to_string(max_pictures) + " pictures",
                         std::to_string(request.pictures) + " for each of " + std::to_string(conditions) + " conditions",
                         "ask for fewer at once");
    }
    return static_cast<std::int64_t>(conditions) * request.pictures;
}

std::unique_ptr<Noise> stream_of(NoiseKind kind, std::uint64_t seed) {
    if (kind == NoiseKind::torch) {
        return std::make_unique<TorchNoise>(seed);
    }
    return std::make_unique<PhiloxNoise>(seed);
}

std::unique_ptr<Noise> noise_of(const Request& request, std::int64_t pictures) {
    if (request.latents) {
        if (request.latents->dtype != Dtype::float32) {
            throw user_error("latents", "float32", name_of(request.latents->dtype), "convert them");
        }
        return std::make_unique<GivenNoise>(*request.latents);
    }
    if (request.seeds.empty()) {
        return stream_of(request.noise, std::random_device()());
    }
    if (request.seeds.size() == 1) {
        return stream_of(request.noise, request.seeds[0]);
    }
    if (static_cast<std::int64_t>(request.seeds.size()) != pictures) {
        const std::string expected = "one seed, or one per picture (" + std::to_string(pictures) + ")";
        throw user_error("seed", expected, std::to_string(request.seeds.size()), "give as many");
    }
    std::vector<std::unique_ptr<Noise>> streams;
    for (const std::uint64_t seed : request.seeds) {
        streams.push_back(stream_of(request.noise, seed));
    }
    return std::make_unique<PicturesNoise>(std::move(streams));
}

OwnedTensor copy_of(const Tensor& tensor) {
    OwnedTensor copy = owned_tensor(tensor.dtype, tensor.shape);
    std::memcpy(copy.tensor.data, tensor.data, tensor.bytes());
    return copy;
}

/// The results of a program, [pictures, H, W, 3] or [pictures, frames, H, W, 3], joined along the frames; `check_program` has seen
/// that they are alike in all else.
OwnedTensor joined_frames(const std::vector<OwnedTensor>& results, const std::string& program) {
    std::int64_t frames = 0;
    for (const OwnedTensor& result : results) {
        const Shape& shape = result.tensor.shape;
        if (result.tensor.dtype != Dtype::uint8 || shape.size() < 4 || shape.size() > 5 || shape.back() != 3) {
            throw failure("program '" + program + "'", "pictures, uint8 [pictures, frames, height, width, 3]",
                          kind_text(result.tensor.dtype, shape), "rebuild the bundle");
        }
        frames += shape.size() == 5 ? shape[1] : 1;
    }
    Shape shape = results.at(0).tensor.shape;
    const std::int64_t pictures = shape[0];
    const Shape picture(shape.end() - 3, shape.end());
    OwnedTensor joined = owned_tensor(Dtype::uint8, {pictures, frames, picture[0], picture[1], picture[2]});
    std::byte* target = joined.tensor.data;
    for (std::int64_t index = 0; index < pictures; ++index) {
        for (const OwnedTensor& result : results) {
            const std::size_t bytes = result.tensor.bytes() / static_cast<std::size_t>(pictures);
            std::memcpy(target, result.tensor.data + bytes * static_cast<std::size_t>(index), bytes);
            target += bytes;
        }
    }
    return joined;
}

}  // namespace

/// Opens the engine of a component when it first runs, and counts the seconds of both.
class Pipeline::TimedEngine final : public Engine {
public:
    TimedEngine(Pipeline& pipeline, std::string component, Size size)
        : pipeline_(pipeline), component_(std::move(component)), size_(size) {}

    void run(const std::vector<Binding>& inputs, const std::vector<Binding>& outputs, const std::string& where) override {
        const Clock::time_point start = Clock::now();
        if (engine_ == nullptr) {
            engine_ = &pipeline_.engine(component_, size_);
        }
        engine_->run(inputs, outputs, where);
        seconds_ += seconds_since(start);
        ran_ = true;
    }

    /// Frees the engine; it is opened again if it runs again.
    void release() {
        engine_ = nullptr;
        pipeline_.engines_.erase({component_, size_});
    }

    [[nodiscard]] bool ran() const { return ran_; }
    [[nodiscard]] double seconds() const { return seconds_; }

private:
    Pipeline& pipeline_;
    std::string component_;
    Size size_;
    Engine* engine_ = nullptr;
    bool ran_ = false;
    double seconds_ = 0;
};

Pipeline::Pipeline(Bundle bundle, bool keep) : bundle_(std::move(bundle)), keep_(keep) {
    check_formats(bundle_);
}

const Program& Pipeline::program(const ProgramEntry& entry) {
    const std::lock_guard<std::mutex> lock(reading_);
    const auto found = programs_.find(entry.file);
    if (found != programs_.end()) {
        return found->second;
    }
    Program program = program_from_json(bundle_.read(entry.file), bundle_.path() + ": " + entry.file);
    check_program(program, bundle_.manifest().components);
    return programs_.emplace(entry.file, std::move(program)).first->second;
}

Output Pipeline::run(const Request& request) {
    if (running_.exchange(true)) {
        throw Error(Code::busy, bundle_.path(), "one run at a time", "another that has not ended",
                    "wait for it, or open the bundle once more");
    }
    struct Ending {
        Pipeline& pipeline;
        ~Ending() {
            if (!pipeline.keep_) {  // a run that stops half-way leaves engines behind
                pipeline.engines_.clear();
            }
            pipeline.cancelled_ = false;  // not at the start: a cancel may come before it
            pipeline.running_ = false;
        }
    };
    const Ending ending{*this};
    return run_alone(request);
}

Output Pipeline::run_alone(const Request& request) {
    const Clock::time_point start = Clock::now();
    const std::int64_t pictures = pictures_of(request);
    const Chosen chosen = choose(request);
    const Program& stored = program(chosen.entry);
    const Program wanted = request.buffers.empty() ? stored : with_given(stored, request.buffers);
    const std::map<std::string, OwnedTensor> filled = fill_request(request, chosen, wanted, pictures);
    Tensors buffers;
    for (const auto& [name, owned] : filled) {
        buffers[name] = owned.tensor;
    }
    std::map<std::string, TimedEngine> engines;
    std::map<std::string, Engine*> components;
    for (const auto& item : bundle_.manifest().components) {
        components[item.first] = &engines.try_emplace(item.first, *this, item.first, chosen.size).first->second;
    }
    Output output;
    const std::size_t iterations = wanted.iterations.size();
    Hooks hooks;
    hooks.trace = request.on_trace;
    hooks.cancel = [this] { return cancelled_.load(); };
    if (!keep_) {
        hooks.release = [&](const std::string& name) { engines.at(name).release(); };
    }
    if (request.on_step || request.want_latents) {
        hooks.on_step = [&](std::size_t step, double timestep, const FindBuffer& find) {
            const Tensor* latents = find(sample);
            if (latents == nullptr) {
                return;
            }
            if (request.on_step) {
                request.on_step(step, iterations, timestep, *latents);
            }
            if (request.want_latents && step + 1 == iterations) {
                output.latents = copy_of(*latents);
            }
        };
    }
    Parameters parameters;
    for (const auto& item : wanted.parameters) {
        if (item.first == guidance_scale) {
            parameters[guidance_scale] = chosen.scale;
        }
    }
    const MappedTensors tables = chosen.entry.tables ? bundle_.tensors(*chosen.entry.tables) : MappedTensors{};
    const std::unique_ptr<Noise> noise = noise_of(request, pictures);
    const std::vector<OwnedTensor> results =
        run_program(wanted, {components, buffers, parameters, *noise, tables.tensors, pictures}, hooks);
    output.pictures = joined_frames(results, wanted.name);
    output.program = wanted.name;
    for (const auto& [name, engine] : engines) {
        if (engine.ran()) {
            output.seconds[name] = engine.seconds();
        }
    }
    output.seconds["total"] = seconds_since(start);
    return output;
}

/// The program of a request; without guidance if the scale turns it off.
Pipeline::Chosen Pipeline::choose(const Request& request) const {
    const Manifest& manifest = bundle_.manifest();
    if (manifest.programs.empty()) {
        throw user_error(bundle_.path(), "a sampling program", "none", "rebuild the bundle");
    }
    const Size size = {request.height.value_or(manifest.sizes[0].first), request.width.value_or(manifest.sizes[0].second)};
    const double scale = request.guidance.value_or(manifest.guidance_default);
    const bool guided = manifest.guidance_kind == "classifier-free" && scale > 1;
    const std::int64_t steps = request.steps.value_or(manifest.programs[0].steps);
    std::set<std::string> present;
    for (const ProgramEntry& entry : manifest.programs) {
        if (entry.steps == steps && entry.size == size && entry.guided == guided) {
            return {size, scale, entry};
        }
        present.insert(size_text(entry.size) + " in " + std::to_string(entry.steps) + " steps");
    }
    std::string listed;
    for (const std::string& each : present) {
        listed += (listed.empty() ? "" : ", ") + each;
    }
    throw user_error(bundle_.path(), "one of " + listed, size_text(size) + " in " + std::to_string(steps) + " steps",
                     "rebuild with --size " + size_text(size) + " --steps " + std::to_string(steps));
}

std::map<std::string, OwnedTensor> Pipeline::fill_request(const Request& request, const Chosen& chosen, const Program& program,
                                                          std::int64_t pictures) {
    const Asked asked = {repeated(request.prompts, request.pictures),
                         negatives_of(request, pictures),
                         repeated(request.class_labels, request.pictures),
                         {{guidance_scale, chosen.scale}},
                         request.buffers};
    const auto tokenize = [&](const TextEntry& entry, const std::vector<std::string>& prompts) {
        text::Tokens tokens = text::tokenize(tokenizer(entry), prompts, entry.name);
        for (const std::string& warning : tokens.warnings) {
            if (request.on_warning) {
                request.on_warning(warning);
            }
        }
        return tokens;
    };
    return request_buffers(bundle_.manifest(), program, chosen.entry.guided, asked, pictures, tokenize);
}

const text::Tokenizer& Pipeline::tokenizer(const TextEntry& entry) {
    std::unique_ptr<text::Tokenizer>& found = tokenizers_[entry.tokenizer];
    if (!found) {
        found = std::make_unique<text::Tokenizer>(bundle_.read(entry.tokenizer), bundle_.path() + ": " + entry.tokenizer);
    }
    return *found;
}

Engine& Pipeline::engine(const std::string& component, const Size& size) {
    std::unique_ptr<Engine>& found = engines_[{component, size}];
    if (!found) {
        found = open_engine(bundle_, component, size, backends_);
    }
    return *found;
}

}  // namespace dexport
