#include "backends/device_memory.h"

#include <utility>

#include "backends/gpu_errors.h"

namespace dexport {

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : device_(std::move(other.device_)), address_(std::exchange(other.address_, 0)), bytes_(std::exchange(other.bytes_, 0)) {}

void DeviceMemory::reserve(std::size_t bytes, const std::string& where, const char* what) {
    if (address_ != 0 && bytes <= bytes_) {
        return;
    }
    forget();  // first, so that old and new need not both fit
    address_ = device_->allocate(bytes);
    if (address_ == 0) {
        throw no_room(where, what, bytes, device_->memory().free);
    }
    bytes_ = bytes;
}

void DeviceMemory::forget() noexcept {
    if (address_ != 0 && device_->try_use()) {
        device_->free(address_);
    }
    address_ = 0;
    bytes_ = 0;
}

}  // namespace dexport
