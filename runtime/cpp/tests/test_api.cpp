#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "dexport/dexport.hpp"
#include "sample_bundle.h"

// Through the header-only wrapper where it can say the same; through the C functions where it keeps callers from mistakes.

namespace {

using dexport::v1::Error;
using dexport::v1::Pipeline;
using dexport::v1::Request;

Request labelled() {
    Request request;
    request.class_labels = {2};
    request.seeds = {7};
    return request;
}

}  // namespace

TEST_CASE("a bundle says what it can do") {
    const dexport::Folder folder;
    const Pipeline pipeline(dexport::write_sample_bundle(folder.path()).string());
    CHECK(std::string(pipeline.info().precision) == "fp32");
    CHECK(pipeline.components() == std::vector<std::string>{"denoiser", "decoder"});
    CHECK(pipeline.sizes() == std::vector<std::pair<std::int64_t, std::int64_t>>{{4, 4}});
    CHECK(pipeline.texts().empty());
    CHECK(pipeline.programs()[0].steps == 3);
    const dexport_input_info input = pipeline.inputs(0)[0];
    CHECK(std::string(input.name) == "label");
    CHECK(input.dtype == DEXPORT_FLOAT32);
    CHECK(input.axes == 4);
    CHECK(input.per_picture == 1);
    CHECK(std::string(dexport_version()).find('.') != std::string::npos);
    CHECK(dexport_peak_memory() > 0);
}

TEST_CASE("a run hands out pictures, latents and seconds") {
    const dexport::Folder folder;
    const Pipeline pipeline(dexport::write_sample_bundle(folder.path()).string());
    Request request = labelled();
    request.want_latents = true;
    std::size_t steps = 0, lines = 0;
    request.on_step = [&](std::size_t, std::size_t, double, const dexport_tensor& latents) { return ++steps > 0 && latents.axes == 4; };
    request.on_trace = [&](const char*) { ++lines; };
    const auto result = pipeline.run(request);
    CHECK(result.size() == std::array<std::size_t, 4>{1, 1, 4, 4});
    CHECK(result.latents().shape[3] == 3);
    CHECK(result.program() == "toy");
    CHECK(result.seconds() > result.seconds("denoiser"));
    CHECK(result.seconds("no") == 0);
    CHECK(steps == 3);
    CHECK(lines == 8);
    CHECK_THROWS_WITH_AS(static_cast<void>(pipeline.run(labelled()).latents()),
                         doctest::Contains("expected a request with want_latents set"), Error);
}

TEST_CASE("a callback stops a run, and another thread finds the handle busy") {
    const dexport::Folder folder;
    const Pipeline pipeline(dexport::write_sample_bundle(folder.path()).string());
    Request request = labelled();
    dexport_status other = DEXPORT_OK;
    std::string text;
    request.on_step = [&](std::size_t, std::size_t, double, const dexport_tensor&) {
        std::thread([&] {
            try {
                static_cast<void>(pipeline.run(labelled()));
            } catch (const Error& error) {
                other = error.status();
                text = error.what();
            }
        }).join();
        return false;
    };
    try {
        static_cast<void>(pipeline.run(request));
        FAIL("it ran to the end");
    } catch (const Error& error) {
        CHECK(error.status() == DEXPORT_CANCELLED);
    }
    CHECK(other == DEXPORT_BUSY);
    CHECK(text.find("expected one run at a time") != std::string::npos);
}

TEST_CASE("a run is cancelled from another thread") {
    const dexport::Folder folder;
    const Pipeline pipeline(dexport::write_sample_bundle(folder.path()).string());
    Request request = labelled();
    request.on_step = [&](std::size_t step, std::size_t, double, const dexport_tensor&) {
        if (step == 0) {
            std::thread([&] { pipeline.cancel(); }).join();
        }
        CHECK(step == 0);
        return true;
    };
    CHECK_THROWS_WITH_AS(static_cast<void>(pipeline.run(request)), doctest::Contains("got a request to stop"), Error);
}

TEST_CASE("a cancel that comes before the run is not lost, and stops one run") {
    const dexport::Folder folder;
    const Pipeline pipeline(dexport::write_sample_bundle(folder.path()).string());
    std::size_t lines = 0;
    Request request = labelled();
    request.on_trace = [&](const char*) { ++lines; };
    pipeline.cancel();
    try {
        static_cast<void>(pipeline.run(request));
        FAIL("it ran to the end");
    } catch (const Error& error) {
        CHECK(error.status() == DEXPORT_CANCELLED);
    }
    CHECK(lines == 0);
    CHECK(pipeline.run(request).program() == "toy");
    CHECK(lines == 8);
}

TEST_CASE("a handle that is busy keeps the cancel for the run that goes on") {
    const dexport::Folder folder;
    const Pipeline pipeline(dexport::write_sample_bundle(folder.path()).string());
    Request request = labelled();
    request.on_step = [&](std::size_t step, std::size_t, double, const dexport_tensor&) {
        CHECK(step == 0);
        pipeline.cancel();
        CHECK_THROWS_WITH_AS(static_cast<void>(pipeline.run(labelled())), doctest::Contains("expected one run at a time"), Error);
        return true;
    };
    CHECK_THROWS_WITH_AS(static_cast<void>(pipeline.run(request)), doctest::Contains("got a request to stop"), Error);
}

TEST_CASE("queries come from any thread during a run") {
    const dexport::Folder folder;
    const Pipeline pipeline(dexport::write_sample_bundle(folder.path()).string());
    std::vector<std::thread> asking;
    std::atomic<std::size_t> inputs = 0;
    for (int thread = 0; thread < 4; ++thread) {
        asking.emplace_back([&] { inputs += pipeline.inputs(0).size() + pipeline.programs().size(); });
    }
    CHECK(pipeline.run(labelled()).program() == "toy");
    for (std::thread& each : asking) {
        each.join();
    }
    CHECK(inputs == 8);
}

TEST_CASE("handles share nothing: they run at the same time") {
    const dexport::Folder folder;
    const std::string path = dexport::write_sample_bundle(folder.path()).string();
    std::vector<std::thread> running;
    std::array<std::string, 3> made;
    for (std::string& pixels : made) {
        running.emplace_back([&] {
            const Pipeline pipeline(path);
            const auto result = pipeline.run(labelled());
            pixels.assign(reinterpret_cast<const char*>(result.pixels()), 48);
        });
    }
    for (std::thread& each : running) {
        each.join();
    }
    CHECK(made[0] == made[1]);
    CHECK(made[0] == made[2]);
}

TEST_CASE("what another library throws is one line that says whose it is") {
    const dexport::Folder folder;
    const Pipeline pipeline(dexport::write_sample_bundle(folder.path()).string());
    const std::int64_t label = 2;
    dexport_request request{};
    request.struct_size = sizeof request;
    request.class_labels = &label, request.class_label_count = 1;
    request.on_trace = [](void*, const char*) { throw std::runtime_error("at some.cpp:7\nit broke\n"); };
    dexport_result* result = nullptr;
    CHECK(dexport_run(pipeline.handle(), &request, &result) == DEXPORT_FAILURE);
    CHECK(std::string(dexport_error()) == "dexport: expected no error of another library, got it broke; report it");
}

TEST_CASE("what comes from outside is checked") {
    const dexport::Folder folder;
    dexport_pipeline* pipeline = nullptr;
    CHECK(dexport_open(nullptr, nullptr, &pipeline) == DEXPORT_USER_ERROR);
    CHECK(std::string(dexport_error()) == "path: expected a pointer, got null; pass one");
    CHECK(dexport_open("/nowhere", nullptr, nullptr) == DEXPORT_USER_ERROR);
    CHECK(dexport_open("/nowhere", nullptr, &pipeline) == DEXPORT_USER_ERROR);
    CHECK(pipeline == nullptr);
    const std::string path = dexport::write_sample_bundle(folder.path()).string();
    REQUIRE(dexport_open(path.c_str(), nullptr, &pipeline) == DEXPORT_OK);
    CHECK(std::string(dexport_error()).empty());

    dexport_request request{};
    dexport_result* result = nullptr;
    CHECK(dexport_run(pipeline, &request, &result) == DEXPORT_USER_ERROR);
    CHECK(std::string(dexport_error()).find("dexport_request: expected struct_size to be the size of the struct") == 0);
    request.struct_size = sizeof request;
    CHECK(dexport_run(pipeline, &request, &result) == DEXPORT_USER_ERROR);
    CHECK(std::string(dexport_error()) == "class label: expected a number, got none; give --class-label");
    request.height = -4;
    CHECK(dexport_run(pipeline, &request, &result) == DEXPORT_USER_ERROR);
    request.height = 0;
    dexport_tensor tensor{"labels", DEXPORT_FLOAT32, 4, {1, 1, 1, 1}, &request};
    request.buffers = &tensor, request.buffer_count = 1;
    const std::int64_t label = 2;
    request.class_labels = &label, request.class_label_count = 1;
    CHECK(dexport_run(pipeline, &request, &result) == DEXPORT_USER_ERROR);
    CHECK(std::string(dexport_error()) == "buffers: expected one of the inputs label, got 'labels'; leave it out");
    tensor.axes = 9;
    CHECK(dexport_run(pipeline, &request, &result) == DEXPORT_USER_ERROR);
    CHECK(std::string(dexport_error()).find("buffers[0]: expected 1 to 8 axes, got 9") == 0);
    CHECK(result == nullptr);

    const char* name = nullptr;
    CHECK(dexport_component(pipeline, 2, &name) == DEXPORT_USER_ERROR);
    CHECK(std::string(dexport_error()) == "component: expected an index below 2, got 2; ask for an existing one");
    dexport_cancel(nullptr);
    dexport_result_free(nullptr);
    dexport_close(nullptr);
    dexport_close(pipeline);
}

TEST_CASE("a struct of an older or newer caller is understood") {
    const dexport::Folder folder;
    dexport_pipeline* pipeline = nullptr;
    REQUIRE(dexport_open(dexport::write_sample_bundle(folder.path()).c_str(), nullptr, &pipeline) == DEXPORT_OK);
    dexport_info older{};
    older.struct_size = offsetof(dexport_info, precision);
    older.precision = "untouched";
    CHECK(dexport_get_info(pipeline, &older) == DEXPORT_OK);
    CHECK(std::string(older.precision) == "untouched");
    CHECK(std::string(older.target) == "cpu");
    struct {
        dexport_open_options known;
        std::int64_t more;
    } newer{};
    newer.known.struct_size = sizeof newer;
    dexport_pipeline* other = nullptr;
    CHECK(dexport_open(folder.path().c_str(), &newer.known, &other) == DEXPORT_OK);
    dexport_close(other);
    newer.more = 1;
    CHECK(dexport_open(folder.path().c_str(), &newer.known, &other) == DEXPORT_USER_ERROR);
    CHECK(std::string(dexport_error()).find("expected fields that this version of the library knows") != std::string::npos);
    dexport_close(pipeline);
}
