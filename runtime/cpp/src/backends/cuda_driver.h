#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace dexport {

/// The functions of the CUDA driver that are called, found in its library when the first GPU is used.
struct CudaFunctions;

/// The device memory of a GPU, in bytes.
struct GpuMemory {
    std::size_t free, total;
};

/// The first GPU and a stream on which everything here is ordered. Bound at run time to the driver's library, which is on every
/// machine that can run an engine and is the only thing needed: no CUDA toolkit. One thread at a time.
class CudaDevice {
public:
    /// `library`: the driver. Throws a user error: there is no NVIDIA driver, or no GPU.
    explicit CudaDevice(const std::string& library = "libcuda.so.1");
    ~CudaDevice();
    CudaDevice(const CudaDevice&) = delete;
    CudaDevice& operator=(const CudaDevice&) = delete;

    /// Compute capability times ten, such as 89 for 8.9.
    [[nodiscard]] int sm() const { return sm_; }

    [[nodiscard]] void* stream() const { return stream_; }

    /// Makes this device current for the calling thread; needed before anything else in a thread.
    void use() const;

    /// As `use`, for destructors: false where it fails, and then nothing that is on the device can be given back.
    [[nodiscard]] bool try_use() const noexcept;

    [[nodiscard]] GpuMemory memory() const;

    /// Address of `bytes` of device memory (at least one, so that empty tensors have an address); 0 if there is not enough.
    [[nodiscard]] std::uint64_t allocate(std::size_t bytes) const;
    void free(std::uint64_t address) const noexcept;

    /// Queues a copy to the device.
    void upload(const std::byte* data, std::uint64_t address, std::size_t bytes) const;

    /// Queues a copy from the device; it is there after `wait`.
    void download(std::uint64_t address, std::byte* data, std::size_t bytes) const;

    /// Waits until everything queued is done; errors of earlier calls show here.
    void wait() const;

    /// From here to `end_capture`, what is queued is recorded instead of done. False: the driver refuses.
    [[nodiscard]] bool begin_capture() const noexcept;

    /// What was recorded, ready to be launched; null if it cannot be, and then nothing of it is left. `keep` false: throw it away.
    [[nodiscard]] void* end_capture(bool keep) const noexcept;

    /// Queues what was recorded.
    void launch(void* graph) const;
    void destroy(void* graph) const noexcept;

private:
    void check(int code, const char* function) const;
    [[nodiscard]] int attribute(int which) const;

    std::unique_ptr<const CudaFunctions> cuda_;
    int device_ = 0, sm_ = 0;
    void* context_ = nullptr;
    void* stream_ = nullptr;
};

}  // namespace dexport
