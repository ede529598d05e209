#include "backends/openvino.h"

#include <algorithm>
#include <cstdlib>
#include <openvino/runtime/core.hpp>
#include <set>
#include <vector>

#include "backends/int8_check.h"
#include "error.h"

namespace dexport {
namespace {

/// The last line of what OpenVINO says; the others are places in its source.
std::string reason_of(const std::exception& error) {
    std::string text = error.what();
    text.erase(text.find_last_not_of(" \n\r\t") + 1);
    return text.empty() ? "an error without a message" : text.substr(text.rfind('\n') + 1);
}

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

/// The model compiled for one combination of input shapes, and the memory that its ports are bound to.
struct Compiled {
    std::vector<Shape> shapes;  // of the inputs, in the caller's order
    ov::InferRequest request;
    std::vector<const std::byte*> bound;  // inputs, then outputs
};

class OpenVinoEngine final : public Engine {
public:
    OpenVinoEngine(const std::string& xml, std::shared_ptr<const Mapping> weights, const std::string& precision, const std::string& cache,
                   std::string name)
        : name_(std::move(name)), weights_(std::move(weights)), properties_(properties_for(xml, precision, cache)) {
        try {
            const ov::Tensor shared(ov::element::u8, {weights_->size()}, weights_->data());
            model_ = core_.read_model(xml, shared);
        } catch (const std::exception& error) {
            throw failure(name_, "an OpenVINO model", reason_of(error), "rebuild the bundle");
        }
    }

    void run(const std::vector<Binding>& inputs, const std::vector<Binding>& outputs, const std::string& where) override {
        Compiled* compiled = known(inputs);
        if (compiled == nullptr) {
            compiled = &compile(inputs);
            check_outputs(compiled->request.get_compiled_model(), outputs, where);
        }
        try {
            for (std::size_t index = 0; index < inputs.size(); ++index) {
                bind(*compiled, index, inputs[index]);
            }
            for (std::size_t index = 0; index < outputs.size(); ++index) {
                bind(*compiled, inputs.size() + index, outputs[index]);
            }
            compiled->request.infer();
        } catch (const std::exception& error) {
            throw failure(name_, "OpenVINO to run", reason_of(error), "rebuild the bundle");
        }
    }

private:
    Compiled* known(const std::vector<Binding>& inputs) {
        for (Compiled& each : compiled_) {
            const bool same = std::equal(inputs.begin(), inputs.end(), each.shapes.begin(), each.shapes.end(),
                                         [](const Binding& input, const Shape& shape) { return input.tensor.shape == shape; });
            if (same) {
                return &each;
            }
        }
        return nullptr;
    }

    Compiled& compile(const std::vector<Binding>& inputs) {
        std::string shapes;
        std::map<std::string, ov::PartialShape> wanted;
        Compiled compiled;
        for (const Binding& input : inputs) {
            shapes += (shapes.empty() ? "" : ", ") + input.port + " " + shape_text(input.tensor.shape);
            wanted[input.port] = ov::PartialShape(ov_shape(input.tensor.shape));
            compiled.shapes.push_back(input.tensor.shape);
        }
        try {
            const std::shared_ptr<ov::Model> model = model_->clone();
            model->reshape(wanted);
            compiled.request = core_.compile_model(model, "CPU", properties_).create_infer_request();
        } catch (const std::exception& error) {
            throw failure(name_, "OpenVINO to compile " + shapes, reason_of(error), "rebuild the bundle");
        }
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

    /// Makes the request use the tensor's memory, unless it does already.
    static void bind(Compiled& compiled, std::size_t index, const Binding& binding) {
        compiled.bound.resize(std::max(compiled.bound.size(), index + 1));
        if (compiled.bound[index] != binding.tensor.data) {
            const ov::Tensor tensor(element_of(binding.tensor.dtype), ov_shape(binding.tensor.shape), binding.tensor.data);
            compiled.request.set_tensor(binding.port, tensor);
            compiled.bound[index] = binding.tensor.data;
        }
    }

    std::string name_;
    std::shared_ptr<const Mapping> weights_;
    ov::AnyMap properties_;
    ov::Core core_;
    std::shared_ptr<ov::Model> model_;
    std::vector<Compiled> compiled_;
};

}  // namespace

std::unique_ptr<Engine> open_openvino(const std::string& xml, std::shared_ptr<const Mapping> weights, const std::string& precision,
                                      const std::string& cache, const std::string& name) {
    return std::make_unique<OpenVinoEngine>(xml, std::move(weights), precision, cache, name);
}

}  // namespace dexport
