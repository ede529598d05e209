#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backends/profiles.h"
#include "tensor.h"

namespace dexport {

/// An input or output of an engine; a free size is -1, bfloat16 travels as its bits in uint16.
struct PlanPort {
    std::string name;
    Dtype dtype;
    Shape shape;
};

/// What runs an engine at one set of input shapes. The device must be in use for every call. Every function throws a failure with
/// what the library says.
class PlanContext {
public:
    virtual ~PlanContext() = default;

    /// The shape that an output has at the shapes of the inputs.
    [[nodiscard]] virtual Shape output_shape(const std::string& output) = 0;

    /// Where a port's numbers lie in device memory.
    virtual void set_address(const std::string& port, std::uint64_t address) = 0;

    /// Where activations may lie between the beginning and the end of a run.
    virtual void set_memory(std::uint64_t address, std::size_t bytes) = 0;

    /// Queues one run on the device's stream.
    virtual void enqueue() = 0;
};

/// An engine that is loaded, as a GPU library shows it.
class Plan {
public:
    virtual ~Plan() = default;

    [[nodiscard]] virtual const std::vector<PlanPort>& inputs() const = 0;
    [[nodiscard]] virtual const std::vector<PlanPort>& outputs() const = 0;
    [[nodiscard]] virtual const std::vector<Profile>& profiles() const = 0;

    /// Bytes for activations under a profile.
    [[nodiscard]] virtual std::size_t memory(int profile) const = 0;

    /// Whether a run, once done, can be recorded as a CUDA graph and launched from then on.
    [[nodiscard]] virtual bool can_be_recorded() const = 0;

    /// A context for these shapes, which `profile` allows. Throws a failure.
    [[nodiscard]] virtual std::unique_ptr<PlanContext> context(int profile, const std::vector<Binding>& inputs) = 0;
};

}  // namespace dexport
