#include <doctest/doctest.h>

#include "backends/gpu_errors.h"
#include "sample_bundle.h"

using namespace dexport;

namespace {

constexpr std::size_t mebibyte = 1 << 20;

}  // namespace

TEST_CASE("memory is told in units that fit") {
    CHECK(memory_text(0) == "0 MiB");
    CHECK(memory_text(12 * mebibyte + 10) == "12 MiB");
    CHECK(memory_text(1536 * mebibyte) == "1.5 GiB");
}

TEST_CASE("an engine for another GPU is refused before it is loaded") {
    CHECK_NOTHROW(check_sm("b.dxb: vae", 87, {}));
    CHECK_NOTHROW(check_sm("b.dxb: vae", 87, {86, 87}));
    CHECK(refusal_of([] {
              check_sm("b.dxb: vae", 110, {86, 87});
          }) == "b.dxb: vae: expected an engine for this GPU (SM110), got an engine for SM86, SM87; rebuild the bundle for this machine");
}

TEST_CASE("why an engine does not load: its version, the memory, or the driver") {
    const std::string version = "The engine plan file is not compatible with this version of TensorRT, expecting library version 10.3.0";
    const Error other = load_error("b.dxb: vae", 87, version, 10 * mebibyte, 100 * mebibyte);
    CHECK(other.code() == Code::user);
    CHECK(std::string(other.what()) ==
          "b.dxb: vae: expected an engine for this GPU (SM87), got " + version + "; rebuild the bundle for this machine");
    CHECK(std::string(load_error("vae", 87, "", 10, 100).what()).find("got a plan that does not load") != std::string::npos);
    for (const char* log : {"OutOfMemory (Requested size was 7 bytes.)", "CUDA error 2: out of memory"}) {
        const Error full = load_error("vae", 87, log, 3 * mebibyte, 5 * mebibyte);
        CHECK(full.code() == Code::failure);
        CHECK(std::string(full.what()).find("expected 3 MiB of GPU memory for weights, got 5 MiB free") != std::string::npos);
    }
    CHECK(load_error("vae", 87, "", 6 * mebibyte, 5 * mebibyte).code() == Code::failure);
    const Error old = load_error("vae", 87, "cudaError 35: CUDA driver version is insufficient for CUDA runtime version", 10, 100);
    CHECK(old.code() == Code::user);
    CHECK(std::string(old.what()).find("; install a newer NVIDIA driver") != std::string::npos);
}
