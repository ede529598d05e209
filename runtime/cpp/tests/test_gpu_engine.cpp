#include <doctest/doctest.h>

#include <array>
#include <numeric>

#include "allocations.h"
#include "backends/gpu_engine.h"
#include "error.h"
#include "fake_cuda.h"
#include "sample_bundle.h"

using namespace dexport;

namespace {

/// What the plan below has seen.
struct Seen {
    int contexts = 0, enqueues = 0, moves = 0;
    bool refuses = false;  // while it is recorded, as TensorRT does where it must wait for the device
    std::uint64_t memory = 0;
};

/// y = 2 x, float32 [batch, 3], batch 1 to 4; needs 1000 bytes of activations for each.
class Doubling final : public Plan {
public:
    Doubling(Seen& seen, bool can_be_recorded) : seen_(seen), can_be_recorded_(can_be_recorded) {}

    [[nodiscard]] const std::vector<PlanPort>& inputs() const override { return inputs_; }
    [[nodiscard]] const std::vector<PlanPort>& outputs() const override { return outputs_; }
    [[nodiscard]] const std::vector<Profile>& profiles() const override { return profiles_; }
    [[nodiscard]] std::size_t memory(int profile) const override { return profile == 0 ? 1000 : 4000; }
    [[nodiscard]] bool can_be_recorded() const override { return can_be_recorded_; }

    [[nodiscard]] std::unique_ptr<PlanContext> context(int, const std::vector<Binding>& inputs) override {
        ++seen_.contexts;
        return std::make_unique<Context>(seen_, inputs[0].tensor.shape);
    }

private:
    class Context final : public PlanContext {
    public:
        Context(Seen& seen, Shape shape) : seen_(seen), shape_(std::move(shape)) {}

        Shape output_shape(const std::string&) override { return shape_; }
        void set_address(const std::string& port, std::uint64_t address) override {
            ++seen_.moves;
            (port == "x" ? x_ : y_) = reinterpret_cast<float*>(address);
        }
        void set_memory(std::uint64_t address, std::size_t) override { seen_.memory = address; }
        void enqueue() override {
            ++seen_.enqueues;
            if (seen_.refuses) {
                throw failure("toy", "TensorRT to accept the start", "a refusal", "none");
            }
            submit([x = x_, y = y_, count = elements_of(shape_)] {
                for (std::size_t index = 0; index < count; ++index) {
                    y[index] = 2 * x[index];
                }
            });
        }

    private:
        Seen& seen_;
        Shape shape_;
        float *x_ = nullptr, *y_ = nullptr;
    };

    Seen& seen_;
    bool can_be_recorded_;
    std::vector<PlanPort> inputs_ = {{"x", Dtype::float32, {-1, 3}}}, outputs_ = {{"y", Dtype::float32, {-1, 3}}};
    std::vector<Profile> profiles_ = {{{"x", {{1, 3}, {1, 3}}}}, {{"x", {{1, 3}, {4, 3}}}}};
};

/// An engine on that plan and the numbers it works on.
struct Toy {
    explicit Toy(bool can_be_recorded = true)
        : device(fake_device()),
          activations(std::make_shared<DeviceMemory>(device)),
          engine(gpu_engine(std::make_unique<Doubling>(seen, can_be_recorded), device, activations, "toy")) {}

    /// Whether the engine doubles numbers of this batch.
    bool doubles(std::int64_t batch) {
        std::iota(x.begin(), x.end(), static_cast<float>(++runs));
        run(batch);
        for (std::size_t index = 0; index < static_cast<std::size_t>(3 * batch); ++index) {
            if (y[index] != 2 * x[index]) {
                return false;
            }
        }
        return true;
    }

    void run(std::int64_t batch) {
        inputs[0].tensor.shape[0] = outputs[0].tensor.shape[0] = batch;
        engine->run(inputs, outputs, where);
    }

    std::string where = "step 0, component 'toy'";
    Seen seen;
    int runs = 0;
    std::array<float, 12> x{}, y{};
    std::vector<Binding> inputs = {{"x", {Dtype::float32, {1, 3}, reinterpret_cast<std::byte*>(x.data())}}};
    std::vector<Binding> outputs = {{"y", {Dtype::float32, {1, 3}, reinterpret_cast<std::byte*>(y.data())}}};
    std::shared_ptr<const CudaDevice> device;
    std::shared_ptr<DeviceMemory> activations;
    std::unique_ptr<Engine> engine;
};

}  // namespace

TEST_CASE("the first run is queued, the second recorded, and what was recorded is launched from then on") {
    const FakeCuda& cuda = fake_cuda();
    {
        Toy toy;
        for (int run = 0; run < 5; ++run) {
            CHECK(toy.doubles(1));
        }
        CHECK(toy.seen.enqueues == 2);
        CHECK(cuda.launches == 4);
        CHECK(toy.seen.contexts == 1);
        CHECK(cuda.graphs == 1);
        const std::size_t before = allocations();
        toy.run(1);
        CHECK(allocations() == before);
    }
    CHECK(cuda.graphs + cuda.allocations + cuda.contexts == 0);
}

TEST_CASE("a graph is recorded again where memory moved: buffers that grew, activations that another engine made larger") {
    const FakeCuda& cuda = fake_cuda();
    Toy toy;
    CHECK((toy.doubles(1) && toy.doubles(1) && toy.doubles(1)));
    CHECK(toy.seen.enqueues == 2);
    CHECK((toy.doubles(4) && toy.doubles(4) && toy.doubles(4)));  // larger buffers, a context and a graph of its own
    CHECK(toy.seen.contexts == 2);
    CHECK(toy.seen.enqueues == 4);
    CHECK(toy.activations->bytes() == 4000);
    CHECK((toy.doubles(1) && toy.doubles(1)));  // recorded anew, as what it was recorded with has moved
    CHECK(toy.seen.enqueues == 5);
    CHECK(cuda.graphs == 2);
    toy.activations->reserve(9000, "another", "activations");
    CHECK((toy.doubles(1) && toy.doubles(4)));
    CHECK(toy.seen.enqueues == 7);
    CHECK(toy.seen.memory == toy.activations->address());
}

TEST_CASE("where recording fails, every run is queued") {
    FakeCuda& cuda = fake_cuda();
    cuda.breaks_capture = true;
    Toy toy;
    CHECK((toy.doubles(1) && toy.doubles(1) && toy.doubles(1)));
    CHECK(toy.seen.enqueues == 4);  // the second run tried to record
    CHECK(cuda.launches == 0);
    Toy never(false);
    CHECK((never.doubles(1) && never.doubles(1)));
    CHECK(never.seen.enqueues == 2);
}

TEST_CASE("an engine that does not start says so, and works once it does") {
    fake_cuda();
    Toy toy;
    toy.seen.refuses = true;
    CHECK(refusal_of([&] { toy.run(1); }).find("toy: expected TensorRT to accept the start, got a refusal") == 0);
    toy.seen.refuses = false;
    CHECK(toy.doubles(1));
}

TEST_CASE("names, types and shapes that do not fit are refused") {
    fake_cuda();
    Toy toy;
    CHECK(refusal_of([&] { toy.run(5); }).find("toy: expected x [1, 3] to [1, 3] or x [1, 3] to [4, 3], got x [5, 3]; rebuild") == 0);
    toy.inputs[0].tensor.dtype = Dtype::float16;
    CHECK(refusal_of([&] { toy.run(1); }) ==
          "step 0, component 'toy', input 'x': expected float16 [1, 3], got float32 [1, 3]; rebuild the bundle");
    toy.inputs[0].tensor.dtype = Dtype::float32;
    toy.outputs[0].tensor.shape[1] = 4;
    CHECK(refusal_of([&] { toy.run(1); }) ==
          "step 0, component 'toy', output 'y': expected float32 [1, 4], got float32 [1, 3]; rebuild the bundle");
    toy.outputs[0].port = "z";
    CHECK(refusal_of([&] { toy.run(1); }) == "step 0, component 'toy': expected outputs z, got y; rebuild the bundle");
}

TEST_CASE("too little memory for activations is told, and less is tried again later") {
    FakeCuda& cuda = fake_cuda();
    cuda.total = 2000;
    Toy toy;
    CHECK(refusal_of([&] { toy.run(4); }).find("toy: expected 0 MiB of GPU memory for activations, got 0 MiB free; close other") == 0);
    CHECK(toy.doubles(1));
}
