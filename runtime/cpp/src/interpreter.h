#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "engine.h"
#include "memory.h"
#include "noise.h"
#include "program.h"
#include "tensor_file.h"
#include "trace.h"

namespace dexport {

/// Finds a live buffer by its name; null if there is none. What it finds is valid until the callback that got it returns.
using FindBuffer = std::function<const Tensor*(const std::string&)>;

/// What is called while a program runs, on the thread that runs it; each may be empty.
struct Hooks {
    std::function<void(std::size_t step, double timestep, const FindBuffer& find)> on_step;  ///< after each iteration
    std::function<bool()> cancel;                                                            ///< asked before every instruction
    std::function<void(const std::string& component)> release;                               ///< right after a component's last run
    std::function<void(const std::string& line)> trace;                                      ///< before every instruction
};

/// What a program runs on.
struct Inputs {
    const std::map<std::string, Engine*>& components;
    const Tensors& request;  ///< for `program.request`; copied
    Parameters parameters;   ///< replace the program's defaults
    Noise& noise;
    const Tensors& tables;
    std::int64_t batch = 1;  ///< pictures at once; the size of "batch" in the buffers
};

/// Runs a program that `check_program` has accepted; returns its results in order.
///
/// Memory: a buffer goes after the last instruction that names it. Sums are made in float32, in the order of the terms. An input
/// that joins several refs is joined again only when one of them has changed. Once every instruction of an iteration has run,
/// the same instructions allocate nothing here.
///
/// Throws a user error: request, parameters or tables do not fit the program; a failure: what `Engine::run` throws, or
/// numbers that are not finite; an error of Code::cancelled: `cancel` said so.
[[nodiscard]] std::vector<OwnedTensor> run_program(const Program& program, const Inputs& inputs, const Hooks& hooks);

}  // namespace dexport
