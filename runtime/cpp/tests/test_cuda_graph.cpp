#include <doctest/doctest.h>

#include "backends/cuda_graph.h"
#include "error.h"
#include "fake_cuda.h"

using namespace dexport;

TEST_CASE("work is recorded without being done, and done at every launch") {
    const FakeCuda& cuda = fake_cuda();
    const auto device = fake_device();
    int done = 0;
    auto graph = recorded(device, [&] { submit([&] { ++done; }); });
    REQUIRE(graph != nullptr);
    CHECK(done == 0);
    graph->launch();
    graph->launch();
    CHECK(done == 2);
    graph = nullptr;
    CHECK(cuda.graphs == 0);
}

TEST_CASE("what cannot be recorded gives no graph, and the stream works again") {
    FakeCuda& cuda = fake_cuda();
    const auto device = fake_device();
    CHECK(recorded(device, [] { throw failure("engine", "to run", "a refusal", "none"); }) == nullptr);
    device->wait();
    cuda.refuses_capture = true;
    CHECK(recorded(device, [] {}) == nullptr);
    cuda.refuses_capture = false, cuda.breaks_capture = true;
    CHECK(recorded(device, [] {}) == nullptr);
    device->wait();
    CHECK(cuda.graphs == 0);
}
