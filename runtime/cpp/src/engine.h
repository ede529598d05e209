#pragma once

#include <string>
#include <vector>

#include "tensor.h"

namespace dexport {

/// A tensor and the port of a component that it goes to or comes from.
struct Binding {
    std::string port;
    Tensor tensor;
};

/// A component that runs. One thread at a time.
class Engine {
public:
    virtual ~Engine() = default;

    /// Runs the component once: reads `inputs`, writes `outputs` into the memory that they name. Neither overlaps the other;
    /// both are in alphabetical order of their ports.
    ///
    /// Throws a failure that begins with `where`: an output has another name, dtype or shape, or the backend failed.
    virtual void run(const std::vector<Binding>& inputs, const std::vector<Binding>& outputs, const std::string& where) = 0;
};

}  // namespace dexport
