#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "bundle.h"
#include "engine.h"
#include "engines.h"
#include "interpreter.h"
#include "program.h"
#include "text/tokenizer.h"

namespace dexport {

enum class NoiseKind { torch, philox };

/// What one run makes; as `Pipeline.__call__` in Python.
struct Request {
    std::optional<std::vector<std::string>> prompts;
    std::optional<std::vector<std::string>> negative_prompts;  ///< one, or one per prompt
    std::optional<std::vector<std::int64_t>> class_labels;
    Tensors buffers;            ///< inputs that the caller has filled, such as token ids, or what is made of them: see `with_given`
    std::int64_t pictures = 1;  ///< per prompt or label
    std::optional<std::int64_t> steps, height, width;
    std::optional<double> guidance;
    std::vector<std::uint64_t> seeds;  ///< none: one from the system; one: one stream for all pictures; else one per picture
    NoiseKind noise = NoiseKind::torch;
    std::optional<Tensor> latents;  ///< the initial noise itself, float32, instead of a seed
    bool want_latents = false;
    std::function<void(std::size_t step, std::size_t steps, double timestep, const Tensor& latents)> on_step;
    std::function<void(const std::string&)> on_trace;
    std::function<void(const std::string&)> on_warning;
};

/// What a run made.
struct Output {
    OwnedTensor pictures;                                ///< uint8 [pictures, frames, height, width, 3]
    std::optional<OwnedTensor> latents;                  ///< the sample after the last step, if it was wanted
    std::map<std::string, double, std::less<>> seconds;  ///< wall time by component, and "total"
    std::string program;
};

/// Runs the programs of one bundle. One run at a time; `cancel` from any thread.
class Pipeline {
public:
    /// `keep`: keep engines loaded between runs; else each is freed after its last use in a run, for small devices.
    /// Throws a user error if this build of the library cannot run the bundle.
    Pipeline(Bundle bundle, bool keep);

    [[nodiscard]] const Bundle& bundle() const { return bundle_; }

    /// Throws a user error: steps, size or guidance that the bundle lacks, or a wrong condition; a failure: an engine failed or
    /// gave NaN; Code::cancelled; Code::busy: another run goes on.
    [[nodiscard]] Output run(const Request& request);

    /// Makes the current run stop before its next instruction, or the next run before its first; from any thread, also from a callback.
    void cancel() { cancelled_ = true; }

    /// Reads and checks a program of the manifest when it is first asked for; from any thread, also during a run.
    [[nodiscard]] const Program& program(const ProgramEntry& entry);

private:
    class TimedEngine;
    struct Chosen {
        Size size;
        double scale;
        const ProgramEntry& entry;
    };

    [[nodiscard]] Output run_alone(const Request& request);
    [[nodiscard]] Chosen choose(const Request& request) const;
    [[nodiscard]] std::map<std::string, OwnedTensor> fill_request(const Request& request, const Chosen& chosen, const Program& program,
                                                                  std::int64_t pictures);
    [[nodiscard]] const text::Tokenizer& tokenizer(const TextEntry& entry);
    [[nodiscard]] Engine& engine(const std::string& component, const Size& size);

    Bundle bundle_;
    bool keep_;
    Backends backends_;
    std::map<std::pair<std::string, Size>, std::unique_ptr<Engine>> engines_;
    std::map<std::string, std::unique_ptr<text::Tokenizer>> tokenizers_;
    std::mutex reading_;  // guards programs_, which only grows
    std::map<std::string, Program> programs_;
    std::atomic<bool> running_ = false;
    std::atomic<bool> cancelled_ = false;
};

}  // namespace dexport
