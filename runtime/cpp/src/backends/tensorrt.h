#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine.h"
#include "file.h"

namespace dexport {

/// TensorRT or TensorRT-RTX, whichever this library was built with, on the first GPU, with what all engines of a pipeline share: the
/// stream they run on and the memory for their activations. One thread at a time.
class TensorRt {
public:
    virtual ~TensorRt() = default;

    /// Compute capability times ten of the GPU.
    [[nodiscard]] virtual int sm() const = 0;

    /// Of the library, "10.3.0".
    [[nodiscard]] virtual std::string version() const = 0;

    /// Loads a library of plugins for the engines that are opened from now on; the file is not needed any longer then. Returns why it
    /// was not taken; empty if it was.
    [[nodiscard]] virtual std::string load_plugin(const std::string& path) = 0;

    /// Loads an engine.
    ///
    /// Args:
    ///     plan: the serialized engine; its pages go back to the system once it is loaded.
    ///     sms: compute capabilities times ten that it was built for; another GPU is refused before it is loaded. Empty: any.
    ///     kernels: file for the kernels that TensorRT-RTX compiles when an engine is first used on a machine; empty for none. Read if
    ///         it is there and fits this machine, written when the engine goes.
    ///     name: for errors.
    ///
    /// Throws a user error: it is for another GPU or another version of TensorRT; a failure: there is not enough memory, or it has
    /// inputs or outputs of types that tensors here cannot have.
    [[nodiscard]] virtual std::unique_ptr<Engine> open(const std::shared_ptr<const Mapping>& plan, const std::vector<int>& sms,
                                                       const std::string& kernels, const std::string& name) = 0;
};

/// The format of the engines that this build of the library runs, "tensorrt" or "tensorrt-rtx"; empty if it has neither.
[[nodiscard]] std::string tensorrt_format();

/// Throws a user error: this build has no TensorRT, there is no NVIDIA driver, or no GPU.
[[nodiscard]] std::shared_ptr<TensorRt> start_tensorrt();

}  // namespace dexport
