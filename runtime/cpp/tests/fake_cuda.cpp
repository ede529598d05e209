// A library that exports what CudaDevice needs of the NVIDIA driver, for machines without one. Device memory is memory of the host;
// everything is done at once; a stream that is recorded keeps what is submitted for the launch.
#include "fake_cuda.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

using dexport::FakeCuda;

namespace {

using Work = std::vector<std::function<void()>>;

FakeCuda state;
bool records = false;
Work recording;
std::map<std::uint64_t, std::size_t> sizes;  // of allocations

constexpr int invalid_value = 1, out_of_memory = 2, stream_capture_invalidated = 901;
int stream_object, context_object;

}  // namespace

extern "C" {

FakeCuda* fake_cuda_state() {
    return &state;
}

void fake_cuda_submit(const std::function<void()>& work) {
    if (records) {
        recording.push_back(work);
    } else {
        work();
    }
}

int cuInit(unsigned) {
    return state.init_code;
}

int cuGetErrorString(int code, const char** text) {
    *text = code == out_of_memory ? "out of memory" : code == invalid_value ? "invalid argument" : nullptr;
    return *text == nullptr ? invalid_value : 0;
}

int cuDeviceGetCount(int* count) {
    *count = state.devices;
    return 0;
}

int cuDeviceGet(int* device, int index) {
    *device = index;
    return 0;
}

int cuDeviceGetAttribute(int* value, int which, int) {
    *value = which == 75 ? 8 : which == 76 ? 7 : 0;
    return 0;
}

int cuDevicePrimaryCtxRetain(void** context, int) {
    *context = &context_object;
    ++state.contexts;
    return 0;
}

int cuDevicePrimaryCtxRelease_v2(int) {
    --state.contexts;
    return 0;
}

int cuCtxSetCurrent(void* context) {
    return context == &context_object ? 0 : invalid_value;
}

int cuStreamCreate(void** stream, unsigned) {
    *stream = &stream_object;
    ++state.streams;
    return 0;
}

int cuStreamDestroy_v2(void*) {
    --state.streams;
    return 0;
}

int cuStreamSynchronize(void*) {
    return records ? invalid_value : 0;
}

int cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
    *free = state.total - state.used;
    *total = state.total;
    return 0;
}

int cuMemAlloc_v2(std::uint64_t* address, std::size_t bytes) {
    if (bytes > state.total - state.used) {
        return out_of_memory;
    }
    *address = reinterpret_cast<std::uint64_t>(std::malloc(bytes));
    sizes[*address] = bytes;
    state.used += bytes;
    ++state.allocations;
    return 0;
}

int cuMemFree_v2(std::uint64_t address) {
    state.used -= sizes.at(address);
    sizes.erase(address);
    --state.allocations;
    std::free(reinterpret_cast<void*>(address));
    return 0;
}

int cuMemcpyHtoDAsync_v2(std::uint64_t address, const void* data, std::size_t bytes, void*) {
    std::memcpy(reinterpret_cast<void*>(address), data, bytes);
    return 0;
}

int cuMemcpyDtoHAsync_v2(void* data, std::uint64_t address, std::size_t bytes, void*) {
    std::memcpy(data, reinterpret_cast<const void*>(address), bytes);
    return 0;
}

int cuStreamBeginCapture_v2(void*, int) {
    if (state.refuses_capture) {
        return invalid_value;
    }
    records = true;
    recording.clear();
    return 0;
}

int cuStreamEndCapture(void*, void** graph) {
    records = false;
    if (state.breaks_capture) {
        return stream_capture_invalidated;
    }
    *graph = std::make_unique<Work>(recording).release();
    ++state.graphs;
    return 0;
}

int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    *executable = std::make_unique<Work>(*static_cast<Work*>(graph)).release();
    ++state.graphs;
    return 0;
}

int cuGraphLaunch(void* executable, void*) {
    ++state.launches;
    for (const std::function<void()>& work : *static_cast<Work*>(executable)) {
        work();
    }
    return 0;
}

int cuGraphDestroy(void* graph) {
    const std::unique_ptr<Work> gone(static_cast<Work*>(graph));
    --state.graphs;
    return 0;
}

int cuGraphExecDestroy(void* executable) {
    return cuGraphDestroy(executable);
}

}  // extern "C"
