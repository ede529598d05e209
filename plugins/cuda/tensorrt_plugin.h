// What all TensorRT plugins of dexport share: one IPluginV3 for an operation that a struct describes, and its creator.
//
// Compiles against TensorRT 10.3 to 11 and needs nothing of TensorRT at link time: IPluginRegistry::loadLibrary asks a library for
// its creators by getCreators, which DEXPORT_EXPORT_PLUGIN defines.
//
// An Operation has
//   struct Attributes                int32_t and float members, zero where they are optional
//   name, fields                     of the node in ONNX; a Field for every attribute
//   valid(attributes)                whether a node may have them
//   outputs(attributes)              how many
//   supports(attributes, position, tensors, inputs)             whether the tensor at a position, inputs before outputs, has a type that
//                                    the kernel takes; those before it are already right
//   output_types(attributes, types of inputs, types of outputs)
//   output_shapes(attributes, shapes of inputs, shapes of outputs, builder)   false if the number of inputs or their ranks are wrong
//   workspace(attributes, inputs, outputs)                      bytes for the largest shapes
//   shapes_fit(attributes, descriptions of inputs)              whether the sizes of a run fit to each other
//   enqueue(attributes, descriptions, pointers, stream)         0 or an error
#pragma once

#include <NvInferRuntime.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

namespace dexport {

constexpr const char* plugin_version = "1";
constexpr const char* plugin_namespace = "dexport";

// An attribute: one of the two pointers says which member it is.
template <class Attributes>
struct Field {
    const char* name;
    int32_t Attributes::*integer;
    float Attributes::*number;
};

template <class T>
struct Span {
    T* first;
    int32_t size;
    T& operator[](int32_t i) const { return first[i]; }
};

// Of one call of enqueue.
struct Tensors {
    Span<const nvinfer1::PluginTensorDesc> input_forms;
    const void* const* inputs;
    void* const* outputs;
    void* workspace;

    // null for an input that the node does not have.
    template <class T>
    const T* input(int32_t position) const {
        return position < 0 ? nullptr : static_cast<const T*>(inputs[position]);
    }
};

inline bool is_flag(int32_t attribute) {
    return attribute == 0 || attribute == 1;
}

// Where an input is that a node may have, -1 without it; `inputs` counts those so far.
inline int32_t position_if(int32_t present, int32_t& inputs) {
    return present != 0 ? inputs++ : -1;
}

inline nvinfer1::Dims sizes(std::initializer_list<int64_t> given) {
    nvinfer1::Dims dims = {};
    dims.nbDims = static_cast<int32_t>(given.size());
    std::copy(given.begin(), given.end(), dims.d);
    return dims;
}

inline bool same(const nvinfer1::Dims& a, const nvinfer1::Dims& b) {
    return a.nbDims == b.nbDims && std::equal(a.d, a.d + a.nbDims, b.d);
}

template <class Operation>
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
public:
    using Attributes = typename Operation::Attributes;

    explicit Plugin(const Attributes& attributes) : attributes_(attributes) {}

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
            case nvinfer1::PluginCapabilityType::kCORE:
                return static_cast<nvinfer1::IPluginV3OneCore*>(this);
            case nvinfer1::PluginCapabilityType::kBUILD:
                return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
            case nvinfer1::PluginCapabilityType::kRUNTIME:
                return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    nvinfer1::IPluginV3* clone() noexcept override { return create(attributes_); }
    // TensorRT owns what it is given and deletes it.
    static nvinfer1::IPluginV3* create(const Attributes& attributes) noexcept {
        try {
            return std::make_unique<Plugin>(attributes).release();
        } catch (const std::bad_alloc&) {
            return nullptr;
        }
    }

    const char* getPluginName() const noexcept override { return Operation::name; }
    const char* getPluginVersion() const noexcept override { return plugin_version; }
    const char* getPluginNamespace() const noexcept override { return plugin_namespace; }

    int32_t getNbOutputs() const noexcept override { return Operation::outputs(attributes_); }

    int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* /*in*/, int32_t /*inputs*/,
                            const nvinfer1::DynamicPluginTensorDesc* /*out*/, int32_t /*outputs*/) noexcept override {
        return 0;
    }

    int32_t getOutputDataTypes(nvinfer1::DataType* out, int32_t outputs, const nvinfer1::DataType* in,
                               int32_t inputs) const noexcept override {
        Operation::output_types(attributes_, Span<const nvinfer1::DataType>{in, inputs}, Span<nvinfer1::DataType>{out, outputs});
        return 0;
    }

    int32_t getOutputShapes(const nvinfer1::DimsExprs* in, int32_t inputs, const nvinfer1::DimsExprs* /*values*/, int32_t /*count*/,
                            nvinfer1::DimsExprs* out, int32_t outputs, nvinfer1::IExprBuilder& builder) noexcept override {
        const Span<const nvinfer1::DimsExprs> given{in, inputs};
        return Operation::output_shapes(attributes_, given, Span<nvinfer1::DimsExprs>{out, outputs}, builder) ? 0 : -1;
    }

    bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t inputs,
                                   int32_t /*outputs*/) noexcept override {
        return tensors[position].desc.format == nvinfer1::PluginFormat::kLINEAR &&
               Operation::supports(attributes_, position, tensors, inputs);
    }

    size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, int32_t inputs, const nvinfer1::DynamicPluginTensorDesc* out,
                            int32_t outputs) const noexcept override {
        using Described = const nvinfer1::DynamicPluginTensorDesc;
        return Operation::workspace(attributes_, Span<Described>{in, inputs}, Span<Described>{out, outputs});
    }

    int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t inputs, const nvinfer1::PluginTensorDesc* /*out*/,
                          int32_t /*outputs*/) noexcept override {
        inputs_ = inputs;
        return Operation::shapes_fit(attributes_, Span<const nvinfer1::PluginTensorDesc>{in, inputs}) ? 0 : -1;
    }

    int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* /*out*/, const void* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        return Operation::enqueue(attributes_, Tensors{{in, inputs_}, inputs, outputs, workspace}, stream);
    }

    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* /*context*/) noexcept override { return clone(); }

    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override {
        written_.clear();
        for (const Field<Attributes>& field : Operation::fields) {
            if (field.integer != nullptr) {
                written_.emplace_back(field.name, &(attributes_.*field.integer), nvinfer1::PluginFieldType::kINT32, 1);
            } else {
                written_.emplace_back(field.name, &(attributes_.*field.number), nvinfer1::PluginFieldType::kFLOAT32, 1);
            }
        }
        collection_ = {static_cast<int32_t>(written_.size()), written_.data()};
        return &collection_;
    }

private:
    Attributes attributes_;
    int32_t inputs_ = 0;
    std::vector<nvinfer1::PluginField> written_;
    nvinfer1::PluginFieldCollection collection_{};
};

template <class Operation>
class Creator final : public nvinfer1::IPluginCreatorV3One {
public:
    using Attributes = typename Operation::Attributes;

    Creator() {
        for (const Field<Attributes>& field : Operation::fields) {
            const auto type = field.integer != nullptr ? nvinfer1::PluginFieldType::kINT32 : nvinfer1::PluginFieldType::kFLOAT32;
            names_.emplace_back(field.name, nullptr, type, 1);
        }
        collection_ = {static_cast<int32_t>(names_.size()), names_.data()};
    }

    // null where an attribute is unknown, of another type or out of bounds, which TensorRT reports with the node's name.
    nvinfer1::IPluginV3* createPlugin(const char* /*name*/, const nvinfer1::PluginFieldCollection* given,
                                      nvinfer1::TensorRTPhase /*phase*/) noexcept override {
        Attributes attributes = {};
        for (int32_t i = 0; given != nullptr && i < given->nbFields; ++i) {
            if (!read(given->fields[i], attributes)) {
                return nullptr;
            }
        }
        return Operation::valid(attributes) ? Plugin<Operation>::create(attributes) : nullptr;
    }

    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
    const char* getPluginName() const noexcept override { return Operation::name; }
    const char* getPluginVersion() const noexcept override { return plugin_version; }
    const char* getPluginNamespace() const noexcept override { return plugin_namespace; }

private:
    static bool read(const nvinfer1::PluginField& given, Attributes& attributes) {
        if (given.data == nullptr || given.length != 1) {
            // The parser of ONNX adds plugin_version and plugin_namespace, which are texts.
            return given.type == nvinfer1::PluginFieldType::kCHAR;
        }
        for (const Field<Attributes>& field : Operation::fields) {
            if (std::strcmp(field.name, given.name) == 0) {
                const bool integer = field.integer != nullptr;
                if (given.type != (integer ? nvinfer1::PluginFieldType::kINT32 : nvinfer1::PluginFieldType::kFLOAT32)) {
                    return false;
                }
                void* const to = integer ? static_cast<void*>(&(attributes.*field.integer)) : &(attributes.*field.number);
                std::memcpy(to, given.data, sizeof(int32_t));
                return true;
            }
        }
        return given.type == nvinfer1::PluginFieldType::kCHAR;
    }

    std::vector<nvinfer1::PluginField> names_;
    nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace dexport

// The symbols that IPluginRegistry::loadLibrary looks for; plugins here have nothing to log, enqueue returns its error.
#define DEXPORT_EXPORT_PLUGIN(Operation)                                                                                      \
    extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) { \
        static dexport::Creator<Operation> creator;                                                                           \
        static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};                                              \
        count = 1;                                                                                                            \
        return creators;                                                                                                      \
    }                                                                                                                         \
    extern "C" __attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder*) {}
