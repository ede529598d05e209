#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

#include "tensor.h"

namespace dexport {

/// Zeroed memory for the numbers of one tensor, aligned for vector instructions.
class Memory {
public:
    Memory() = default;
    explicit Memory(std::size_t bytes) : data_(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{alignment}))) {
        std::memset(data_.get(), 0, bytes);
    }

    /// Null where there is none.
    [[nodiscard]] std::byte* data() const { return data_.get(); }

private:
    static constexpr std::size_t alignment = 64;  // bytes: a cache line

    struct Free {
        void operator()(std::byte* data) const { ::operator delete(data, std::align_val_t{alignment}); }
    };
    std::unique_ptr<std::byte, Free> data_;
};

/// A tensor and the memory that it lies in.
struct OwnedTensor {
    Tensor tensor;
    Memory memory;
};

/// A tensor of zeros.
[[nodiscard]] OwnedTensor owned_tensor(Dtype dtype, Shape shape);

/// The largest resident set of this process so far, in bytes; 0 where the system does not say.
[[nodiscard]] std::size_t peak_memory_bytes();

}  // namespace dexport
