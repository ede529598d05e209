#include "backends/cuda_driver.h"

#include <dlfcn.h>

#include <algorithm>
#include <type_traits>

#include "error.h"

namespace dexport {

/// Signatures of cuda.h, whose handles are pointers and whose addresses are 64-bit numbers. Names carry the suffixes under which the
/// driver exports today's signatures.
struct CudaFunctions {
    int (*init)(unsigned);
    int (*error_string)(int, const char**);
    int (*device_count)(int*);
    int (*device_get)(int*, int);
    int (*device_attribute)(int*, int, int);
    int (*context_retain)(void**, int);
    int (*context_release)(int);
    int (*context_set)(void*);
    int (*stream_create)(void**, unsigned);
    int (*stream_destroy)(void*);
    int (*stream_synchronize)(void*);
    int (*memory_info)(std::size_t*, std::size_t*);
    int (*memory_allocate)(std::uint64_t*, std::size_t);
    int (*memory_free)(std::uint64_t);
    int (*copy_to_device)(std::uint64_t, const void*, std::size_t, void*);
    int (*copy_to_host)(void*, std::uint64_t, std::size_t, void*);
    int (*capture_begin)(void*, int);
    int (*capture_end)(void*, void**);
    int (*graph_instantiate)(void**, void*, unsigned long long);
    int (*graph_launch)(void*, void*);
    int (*graph_destroy)(void*);
    int (*executable_destroy)(void*);
};

namespace {

constexpr int capability_major = 75, capability_minor = 76;  // CUdevice_attribute
constexpr unsigned non_blocking = 1;                         // CUstream_flags
constexpr int capture_of_this_thread = 1;                    // CUstreamCaptureMode
constexpr int out_of_memory = 2;                             // CUresult

std::string reason(const CudaFunctions& cuda, int code) {
    const char* text = nullptr;
    cuda.error_string(code, &text);
    return "error " + std::to_string(code) + (text == nullptr ? "" : " (" + std::string(text) + ")");
}

std::unique_ptr<const CudaFunctions> driver(const std::string& name) {
    // The driver stays loaded until the process ends: other libraries have it too, and it starts threads.
    void* library = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        throw user_error("CUDA", "an NVIDIA GPU", "no NVIDIA driver (" + name + " not found)",
                         "use a bundle for the target cpu, or install the driver");
    }
    auto cuda = std::make_unique<CudaFunctions>();
    const auto find = [&](auto& function, const char* symbol) {
        void* address = ::dlsym(library, symbol);
        if (address == nullptr) {
            throw user_error("CUDA", "a driver with " + std::string(symbol), "an older one", "install a newer NVIDIA driver");
        }
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
    };
    find(cuda->init, "cuInit");
    find(cuda->error_string, "cuGetErrorString");
    find(cuda->device_count, "cuDeviceGetCount");
    find(cuda->device_get, "cuDeviceGet");
    find(cuda->device_attribute, "cuDeviceGetAttribute");
    find(cuda->context_retain, "cuDevicePrimaryCtxRetain");
    find(cuda->context_release, "cuDevicePrimaryCtxRelease_v2");
    find(cuda->context_set, "cuCtxSetCurrent");
    find(cuda->stream_create, "cuStreamCreate");
    find(cuda->stream_destroy, "cuStreamDestroy_v2");
    find(cuda->stream_synchronize, "cuStreamSynchronize");
    find(cuda->memory_info, "cuMemGetInfo_v2");
    find(cuda->memory_allocate, "cuMemAlloc_v2");
    find(cuda->memory_free, "cuMemFree_v2");
    find(cuda->copy_to_device, "cuMemcpyHtoDAsync_v2");
    find(cuda->copy_to_host, "cuMemcpyDtoHAsync_v2");
    find(cuda->capture_begin, "cuStreamBeginCapture_v2");
    find(cuda->capture_end, "cuStreamEndCapture");
    find(cuda->graph_instantiate, "cuGraphInstantiateWithFlags");
    find(cuda->graph_launch, "cuGraphLaunch");
    find(cuda->graph_destroy, "cuGraphDestroy");
    find(cuda->executable_destroy, "cuGraphExecDestroy");
    if (const int code = cuda->init(0); code != 0) {
        throw user_error("CUDA", "an NVIDIA GPU", "a driver that says " + reason(*cuda, code),
                         "use a bundle for the target cpu, or check nvidia-smi");
    }
    return cuda;
}

}  // namespace

CudaDevice::CudaDevice(const std::string& library) : cuda_(driver(library)) {
    int found = 0;
    check(cuda_->device_count(&found), "cuDeviceGetCount");
    if (found == 0) {
        throw user_error("CUDA", "an NVIDIA GPU", "0 NVIDIA GPUs", "use a bundle for the target cpu, or check CUDA_VISIBLE_DEVICES");
    }
    check(cuda_->device_get(&device_, 0), "cuDeviceGet");
    sm_ = 10 * attribute(capability_major) + attribute(capability_minor);
    check(cuda_->context_retain(&context_, device_), "cuDevicePrimaryCtxRetain");
    try {
        use();
        check(cuda_->stream_create(&stream_, non_blocking), "cuStreamCreate");
    } catch (...) {
        cuda_->context_release(device_);
        throw;
    }
}

CudaDevice::~CudaDevice() {
    if (try_use()) {
        cuda_->stream_destroy(stream_);
    }
    cuda_->context_release(device_);
}

void CudaDevice::use() const {
    check(cuda_->context_set(context_), "cuCtxSetCurrent");
}

bool CudaDevice::try_use() const noexcept {
    return cuda_->context_set(context_) == 0;
}

GpuMemory CudaDevice::memory() const {
    GpuMemory memory{};
    check(cuda_->memory_info(&memory.free, &memory.total), "cuMemGetInfo");
    return memory;
}

std::uint64_t CudaDevice::allocate(std::size_t bytes) const {
    std::uint64_t address = 0;
    const int code = cuda_->memory_allocate(&address, std::max<std::size_t>(bytes, 1));
    if (code == out_of_memory) {
        return 0;
    }
    check(code, "cuMemAlloc");
    return address;
}

void CudaDevice::free(std::uint64_t address) const noexcept {
    cuda_->memory_free(address);
}

void CudaDevice::upload(const std::byte* data, std::uint64_t address, std::size_t bytes) const {
    if (bytes != 0) {
        check(cuda_->copy_to_device(address, data, bytes, stream_), "cuMemcpyHtoDAsync");
    }
}

void CudaDevice::download(std::uint64_t address, std::byte* data, std::size_t bytes) const {
    if (bytes != 0) {
        check(cuda_->copy_to_host(data, address, bytes, stream_), "cuMemcpyDtoHAsync");
    }
}

void CudaDevice::wait() const {
    check(cuda_->stream_synchronize(stream_), "cuStreamSynchronize");
}

bool CudaDevice::begin_capture() const noexcept {
    return cuda_->capture_begin(stream_, capture_of_this_thread) == 0;
}

void* CudaDevice::end_capture(bool keep) const noexcept {
    void* graph = nullptr;
    if (cuda_->capture_end(stream_, &graph) != 0 || graph == nullptr) {
        return nullptr;
    }
    void* executable = nullptr;
    if (keep && cuda_->graph_instantiate(&executable, graph, 0) != 0) {
        executable = nullptr;
    }
    cuda_->graph_destroy(graph);
    return executable;
}

void CudaDevice::launch(void* graph) const {
    check(cuda_->graph_launch(graph, stream_), "cuGraphLaunch");
}

void CudaDevice::destroy(void* graph) const noexcept {
    cuda_->executable_destroy(graph);
}

int CudaDevice::attribute(int which) const {
    int value = 0;
    check(cuda_->device_attribute(&value, which, device_), "cuDeviceGetAttribute");
    return value;
}

void CudaDevice::check(int code, const char* function) const {
    if (code != 0) {
        throw failure("CUDA " + std::string(function), "success", reason(*cuda_, code), "check GPU memory and driver (nvidia-smi)");
    }
}

}  // namespace dexport
