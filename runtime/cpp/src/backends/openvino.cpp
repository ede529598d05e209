#include "backends/openvino.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <openvino/runtime/core.hpp>
#include <set>
#include <vector>

#include "backends/int8_check.h"
#include "error.h"

namespace dexport {
namespace {

ov::element::Type element_of(Dtype dtype) {
    switch (dtype) {
        case Dtype::boolean:
            return ov::element::boolean;
        case Dtype::int8:
            return ov::element::i8;
        case Dtype::uint8:
            return ov::element::u8;
        case Dtype::int16:
            return ov::element::i16;
        case Dtype::uint16:
            return ov::element::u16;
        case Dtype::int32:
            return ov::element::i32;
        case Dtype::uint32:
            return ov::element::u32;
        case Dtype::int64:
            return ov::element::i64;
        case Dtype::uint64:
            return ov::element::u64;
        case Dtype::float16:
            return ov::element::f16;
        case Dtype::float32:
            return ov::element::f32;
        case Dtype::float64:
            return ov::element::f64;
    }
    return ov::element::dynamic;
}

/// numpy's name where there is one.
std::string name_of_element(const ov::element::Type& type) {
    for (int each = 0; each <= static_cast<int>(Dtype::float64); ++each) {
        if (element_of(static_cast<Dtype>(each)) == type) {
            return name_of(static_cast<Dtype>(each));
        }
    }
    return type.get_type_name();
}

ov::Shape ov_shape(const Shape& shape) {
    return {shape.begin(), shape.end()};
}

ov::AnyMap properties_for(const std::string& xml, const std::string& precision, const std::string& cache) {
    ov::AnyMap properties = {
        // fp16 is a storage format on CPUs: they compute it in fp32.
        {"INFERENCE_PRECISION_HINT", precision == "bf16" ? "bf16" : "f32"},
        {"PERFORMANCE_HINT", "LATENCY"},
        {"NUM_STREAMS", "1"},
        {"DYNAMIC_QUANTIZATION_GROUP_SIZE", "0"},  // else 4-bit weights would get 8-bit activations that nobody asked for
    };
    if (!cache.empty()) {
        properties["CACHE_DIR"] = cache;
    }
    if (xml.find("type=\"FakeQuantize\"") != std::string::npos && !int8_is_exact()) {
        properties["LP_TRANSFORMS_MODE"] = "NO";
    }
    if (const char* threads = std::getenv("DEXPORT_THREADS"); threads != nullptr && *threads != '\0') {
        properties["INFERENCE_NUM_THREADS"] = threads;
    }
    return properties;
}

/// Whether both name the same ports with the same kinds of tensors.
bool are_alike(const std::vector<Binding>& these, const std::vector<Binding>& those) {
    return std::equal(these.begin(), these.end(), those.begin(), those.end(), [](const Binding& one, const Binding& other) {
        return one.port == other.port && one.tensor.dtype == other.tensor.dtype && one.tensor.shape == other.tensor.shape;
    });
}

/// The model compiled for one combination of input shapes; `data` of its bindings is the memory that the request is bound to.
struct Compiled {
    std::vector<Binding> inputs, outputs;
    ov::InferRequest request;
};

class OpenVinoEngine final : public Engine {
public:
    OpenVinoEngine(std::string xml, std::shared_ptr<const Mapping> weights, const std::string& precision, const std::string& cache,
                   std::string name)
        : xml_(std::move(xml)), name_(std::move(name)), weights_(std::move(weights)) {
        explained("OpenVINO on this processor", [&] { properties_ = properties_for(xml_, precision, cache); });
        model_ = read();
    }

    void run(const std::vector<Binding>& inputs, const std::vector<Binding>& outputs, const std::string& where) override {
        Compiled* found = known(inputs, outputs);
        Compiled& compiled = found != nullptr ? *found : compile(inputs, outputs, where);
        explained("OpenVINO to run", [&] {
            bind(compiled.request, compiled.inputs, inputs);
            bind(compiled.request, compiled.outputs, outputs);
            compiled.request.infer();
        });
    }

private:
    /// Calls OpenVINO; what it throws becomes a failure that says what was expected of it.
    template <typename Body>
    void explained(const std::string& expected, const Body& body) const {
        try {
            body();
        } catch (const Error&) {
            throw;
        } catch (const std::exception& error) {
            throw failure(name_, expected, reason_of(error), "rebuild the bundle");
        }
    }

    [[nodiscard]] std::shared_ptr<ov::Model> read() {
        std::shared_ptr<ov::Model> model;
        explained("an OpenVINO model", [&] {
            const ov::Tensor shared(ov::element::u8, {weights_->size()}, weights_->data());
            model = core_.read_model(xml_, shared);
        });
        return model;
    }

    Compiled* known(const std::vector<Binding>& inputs, const std::vector<Binding>& outputs) {
        const auto found = std::find_if(compiled_.begin(), compiled_.end(), [&](const Compiled& each) {
            return are_alike(each.inputs, inputs) && are_alike(each.outputs, outputs);
        });
        return found == compiled_.end() ? nullptr : &*found;
    }

    Compiled& compile(const std::vector<Binding>& inputs, const std::vector<Binding>& outputs, const std::string& where) {
        std::string shapes;
        std::map<std::string, ov::PartialShape> wanted;
        for (const Binding& input : inputs) {
            shapes += (shapes.empty() ? "" : ", ") + input.port + " " + shape_text(input.tensor.shape);
            wanted[input.port] = ov::PartialShape(ov_shape(input.tensor.shape));
        }
        Compiled compiled{inputs, outputs, {}};
        for (std::vector<Binding>* bindings : {&compiled.inputs, &compiled.outputs}) {
            for (Binding& binding : *bindings) {
                binding.tensor.data = nullptr;
            }
        }
        const std::shared_ptr<ov::Model> model = model_ != nullptr ? std::move(model_) : read();
        model_ = nullptr;
        explained("OpenVINO to compile " + shapes, [&] {
            model->reshape(wanted);
            compiled.request = core_.compile_model(model, "CPU", properties_).create_infer_request();
            weights_->forget_pages();
            check_outputs(compiled.request.get_compiled_model(), outputs, where);
        });
        compiled_.push_back(std::move(compiled));
        return compiled_.back();
    }

    static void check_outputs(const ov::CompiledModel& model, const std::vector<Binding>& outputs, const std::string& where) {
        std::set<std::string> given, wanted;
        for (const ov::Output<const ov::Node>& output : model.outputs()) {
            given.insert(output.get_any_name());
        }
        for (const Binding& output : outputs) {
            wanted.insert(output.port);
        }
        if (given != wanted) {
            throw failure(where, "outputs " + names_text(wanted), names_text(given), "rebuild the bundle");
        }
        for (const Binding& output : outputs) {
            const auto& port = model.output(output.port);
            const ov::Shape found = port.get_shape();
            if (port.get_element_type() != element_of(output.tensor.dtype) || found != ov_shape(output.tensor.shape)) {
                const std::string got = name_of_element(port.get_element_type()) + " " + shape_text(Shape(found.begin(), found.end()));
                throw failure(where + ", output '" + output.port + "'", kind_text(output.tensor.dtype, output.tensor.shape), got,
                              "rebuild the bundle");
            }
        }
    }

    /// Makes the request use the memory of the tensors that it does not use already.
    static void bind(ov::InferRequest& request, std::vector<Binding>& bound, const std::vector<Binding>& wanted) {
        for (std::size_t index = 0; index < wanted.size(); ++index) {
            const Binding& binding = wanted[index];
            if (bound[index].tensor.data != binding.tensor.data) {
                const ov::Tensor tensor(element_of(binding.tensor.dtype), ov_shape(binding.tensor.shape), binding.tensor.data);
                request.set_tensor(binding.port, tensor);
                bound[index].tensor.data = binding.tensor.data;
            }
        }
    }

    std::string xml_, name_;
    std::shared_ptr<const Mapping> weights_;
    ov::AnyMap properties_;
    ov::Core core_;
    std::shared_ptr<ov::Model> model_;  // until it is compiled; for further shapes it is read again
    std::vector<Compiled> compiled_;
};

}  // namespace

std::unique_ptr<Engine> open_openvino(std::string xml, std::shared_ptr<const Mapping> weights, const std::string& precision,
                                      const std::string& cache, const std::string& name) {
    return std::make_unique<OpenVinoEngine>(std::move(xml), std::move(weights), precision, cache, name);
}

}  // namespace dexport
