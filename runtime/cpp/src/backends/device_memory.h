#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "backends/cuda_driver.h"

namespace dexport {

/// Device memory that grows and never shrinks, until it goes with its object. Growing loses what was in it and changes its address.
class DeviceMemory {
public:
    explicit DeviceMemory(std::shared_ptr<const CudaDevice> device) : device_(std::move(device)) {}
    ~DeviceMemory() { forget(); }
    DeviceMemory(DeviceMemory&& other) noexcept;
    DeviceMemory& operator=(DeviceMemory&&) = delete;

    /// Makes room for `bytes`. The device must be in use and, if this grows, idle.
    /// Throws a failure that says how much `what` needs and how much is free: there is not enough.
    void reserve(std::size_t bytes, const std::string& where, const char* what);

    /// 0 where nothing was reserved.
    [[nodiscard]] std::uint64_t address() const { return address_; }
    [[nodiscard]] std::size_t bytes() const { return bytes_; }

private:
    void forget() noexcept;

    std::shared_ptr<const CudaDevice> device_;
    std::uint64_t address_ = 0;
    std::size_t bytes_ = 0;
};

}  // namespace dexport
