#include <doctest/doctest.h>

#include <array>

#include "fake_cuda.h"
#include "sample_bundle.h"

using namespace dexport;

TEST_CASE("a machine without driver or GPU is told in one line") {
    CHECK(refusal_of([] { const CudaDevice device("libnothing.so.1"); }) ==
          "CUDA: expected an NVIDIA GPU, got no NVIDIA driver (libnothing.so.1 not found); use a bundle for the target cpu, or install "
          "the driver");
    CHECK(refusal_of([] { const CudaDevice device("libm.so.6"); }) ==
          "CUDA: expected a driver with cuInit, got an older one; install a newer NVIDIA driver");
    FakeCuda& cuda = fake_cuda();
    cuda.devices = 0;
    CHECK(refusal_of([] { fake_device(); }).find("expected an NVIDIA GPU, got 0 NVIDIA GPUs") != std::string::npos);
    cuda.init_code = 100;
    CHECK(refusal_of([] { fake_device(); }).find("got a driver that says error 100; ") != std::string::npos);
}

TEST_CASE("a device says what it is, copies, and gives everything back") {
    const FakeCuda& cuda = fake_cuda();
    {
        const auto device = fake_device();
        CHECK(device->sm() == 87);
        CHECK(device->memory().free == cuda.total);
        std::array<std::byte, 3> data = {std::byte{1}, std::byte{2}, std::byte{3}}, back{};
        const std::uint64_t address = device->allocate(data.size());
        device->upload(data.data(), address, data.size());
        device->download(address, back.data(), back.size());
        device->wait();
        CHECK(back == data);
        device->free(address);
        CHECK(device->allocate(cuda.total + 1) == 0);
    }
    CHECK(cuda.contexts + cuda.streams + cuda.allocations == 0);
}

TEST_CASE("an error of the driver names the function and the reason") {
    fake_cuda();
    const auto device = fake_device();
    REQUIRE(device->begin_capture());
    CHECK(refusal_of([&] { device->wait(); }) ==
          "CUDA cuStreamSynchronize: expected success, got error 1 (invalid argument); check GPU memory and driver (nvidia-smi)");
    CHECK(device->end_capture(false) == nullptr);
}
