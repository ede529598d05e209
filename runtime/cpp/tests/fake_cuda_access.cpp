#include <dlfcn.h>

#include "fake_cuda.h"

namespace dexport {
namespace {

template <typename Function>
Function* symbol(const char* name) {
    void* library = ::dlopen(FAKE_CUDA, RTLD_NOW | RTLD_LOCAL);
    return reinterpret_cast<Function*>(::dlsym(library, name));
}

}  // namespace

FakeCuda& fake_cuda() {
    FakeCuda& state = *symbol<FakeCuda*()>("fake_cuda_state")();
    state = FakeCuda();
    return state;
}

std::shared_ptr<const CudaDevice> fake_device() {
    return std::make_shared<const CudaDevice>(FAKE_CUDA);
}

void submit(const std::function<void()>& work) {
    symbol<void(const std::function<void()>&)>("fake_cuda_submit")(work);
}

}  // namespace dexport
