// Uses a plugin as TensorRT does, without TensorRT: creates it by name, writes it into a plan and reads it back, asks it for types,
// formats, shapes and memory, and starts it. Drivers of tests describe a node by a request of the launcher, so that the launcher's tests
// run through the plugin too.
#pragma once

#include <NvInferRuntime.h>

#include <cstring>
#include <memory>
#include <utility>
#include <vector>

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);

namespace dexport::testing {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginTensorDesc;
using Plugin = std::unique_ptr<nvinfer1::IPluginV3>;

struct Node {
    const char* operation = "";
    std::vector<PluginField> fields;
    std::vector<PluginTensorDesc> inputs, outputs;
    std::vector<const void*> read;
    std::vector<void*> written;
    void* workspace = nullptr;
    size_t workspace_bytes = 0;
    // Inputs and axes whose size follows from others.
    std::vector<std::pair<size_t, int32_t>> bound;

    // An input that the node only has where its pointer is given.
    void add(const void* pointer, const PluginTensorDesc& desc) {
        if (pointer != nullptr) {
            inputs.push_back(desc);
            read.push_back(pointer);
        }
    }
};

inline PluginTensorDesc described(DataType type, const std::vector<int32_t>& sizes) {
    PluginTensorDesc desc = {};
    desc.dims.nbDims = static_cast<int32_t>(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) {
        desc.dims.d[i] = sizes[i];
    }
    desc.type = type;
    desc.format = nvinfer1::PluginFormat::kLINEAR;
    return desc;
}

inline PluginField field(const char* name, const int32_t& value) {
    return {name, &value, nvinfer1::PluginFieldType::kINT32, 1};
}

inline PluginField field(const char* name, const float& value) {
    return {name, &value, nvinfer1::PluginFieldType::kFLOAT32, 1};
}

inline nvinfer1::IPluginCreatorV3One& creator() {
    int32_t count = 0;
    return static_cast<nvinfer1::IPluginCreatorV3One&>(*getCreators(count)[0]);
}

// null where the creator refuses these attributes.
inline Plugin created(const std::vector<PluginField>& fields) {
    const nvinfer1::PluginFieldCollection given = {static_cast<int32_t>(fields.size()), fields.data()};
    return Plugin(creator().createPlugin("node", &given, nvinfer1::TensorRTPhase::kBUILD));
}

template <class Capability>
Capability& capability(nvinfer1::IPluginV3& plugin, nvinfer1::PluginCapabilityType type) {
    return *static_cast<Capability*>(plugin.getCapabilityInterface(type));
}

inline nvinfer1::IPluginV3OneBuild& builds(nvinfer1::IPluginV3& plugin) {
    return capability<nvinfer1::IPluginV3OneBuild>(plugin, nvinfer1::PluginCapabilityType::kBUILD);
}

inline nvinfer1::IPluginV3OneRuntime& runs(nvinfer1::IPluginV3& plugin) {
    return capability<nvinfer1::IPluginV3OneRuntime>(plugin, nvinfer1::PluginCapabilityType::kRUNTIME);
}

inline std::vector<nvinfer1::DynamicPluginTensorDesc> dynamic(const std::vector<PluginTensorDesc>& tensors) {
    std::vector<nvinfer1::DynamicPluginTensorDesc> found;
    for (const PluginTensorDesc& desc : tensors) {
        found.emplace_back();
        found.back().desc = desc;
        found.back().min = found.back().max = found.back().opt = desc.dims;
    }
    return found;
}

// Takes the tensors as they are; none of another type or format.
inline bool takes_formats(nvinfer1::IPluginV3& plugin, const Node& node) {
    auto tensors = dynamic(node.inputs);
    const auto outputs = dynamic(node.outputs);
    tensors.insert(tensors.end(), outputs.begin(), outputs.end());
    const auto inputs = static_cast<int32_t>(node.inputs.size()), all = static_cast<int32_t>(tensors.size());
    const auto takes = [&](int32_t i) { return builds(plugin).supportsFormatCombination(i, tensors.data(), inputs, all - inputs); };
    for (int32_t i = 0; i < all; ++i) {
        auto& desc = tensors[static_cast<size_t>(i)].desc;
        const PluginTensorDesc right = desc;
        const bool taken = takes(i);
        desc.type = DataType::kINT8;
        const bool other_type = takes(i);
        desc = right;
        desc.format = nvinfer1::PluginFormat::kCHW32;
        if (!taken || other_type || takes(i)) {
            return false;
        }
        desc = right;
    }
    return true;
}

inline bool gives_types(nvinfer1::IPluginV3& plugin, const Node& node) {
    std::vector<DataType> in, out(node.outputs.size(), DataType::kINT8);
    for (const PluginTensorDesc& desc : node.inputs) {
        in.push_back(desc.type);
    }
    const auto outputs = static_cast<int32_t>(out.size());
    builds(plugin).getOutputDataTypes(out.data(), outputs, in.data(), static_cast<int32_t>(in.size()));
    for (size_t i = 0; i < out.size(); ++i) {
        if (out[i] != node.outputs[i].type) {
            return false;
        }
    }
    return builds(plugin).getNbOutputs() == outputs;
}

// Sizes that are not known yet: TensorRT's own have no public constructor, and plugins only hand them on.
struct Size final : nvinfer1::IDimensionExpr {
    int64_t value = 0;
};
struct Builder final : nvinfer1::IExprBuilder {};

// Gives the outputs' shapes, and none where an input is missing or of a rank that no input has.
inline bool gives_shapes(nvinfer1::IPluginV3& plugin, const Node& node) {
    std::vector<std::unique_ptr<Size>> known;
    std::vector<nvinfer1::DimsExprs> in, out(node.outputs.size());
    for (const PluginTensorDesc& desc : node.inputs) {
        in.emplace_back();
        in.back().nbDims = desc.dims.nbDims;
        for (int32_t i = 0; i < desc.dims.nbDims; ++i) {
            known.push_back(std::make_unique<Size>());
            known.back()->value = desc.dims.d[i];
            in.back().d[i] = known.back().get();
        }
    }
    Builder builder;
    const auto outputs = static_cast<int32_t>(out.size()), inputs = static_cast<int32_t>(in.size());
    const auto ask = [&](int32_t count) {
        return builds(plugin).getOutputShapes(in.data(), count, nullptr, 0, out.data(), outputs, builder) == 0;
    };
    bool right = ask(inputs) && !ask(inputs - 1);
    for (size_t i = 0; i < out.size(); ++i) {
        const nvinfer1::Dims& wanted = node.outputs[i].dims;
        right = right && out[i].nbDims == wanted.nbDims;
        for (int32_t axis = 0; right && axis < wanted.nbDims; ++axis) {
            right = static_cast<const Size*>(out[i].d[axis])->value == wanted.d[axis];
        }
    }
    for (size_t i = 1; i < in.size(); ++i) {
        in[i].nbDims += 3;
        right = right && !ask(inputs);
        in[i].nbDims -= 3;
    }
    return right;
}

// Whether a run with these sizes is refused.
inline bool refuses_sizes(nvinfer1::IPluginV3& plugin, const Node& node) {
    return runs(plugin).onShapeChange(node.inputs.data(), static_cast<int32_t>(node.inputs.size()), node.outputs.data(),
                                      static_cast<int32_t>(node.outputs.size())) != 0;
}

// The code of enqueue; from -101 on, what the plugin does wrong before or after.
inline int run(Node node) {
    int32_t count = 0;
    getCreators(count);
    if (count != 1 || std::strcmp(creator().getPluginName(), node.operation) != 0 ||
        creator().getFieldNames()->nbFields != static_cast<int32_t>(node.fields.size())) {
        return -101;
    }
    node.fields.emplace_back("plugin_version", "1", nvinfer1::PluginFieldType::kCHAR, 1);
    const Plugin built = created(node.fields);
    if (built == nullptr) {
        return -102;
    }
    if (!takes_formats(*built, node) || !gives_types(*built, node)) {
        return -103;
    }
    if (!gives_shapes(*built, node)) {
        return -104;
    }
    const auto in = dynamic(node.inputs), out = dynamic(node.outputs);
    if (builds(*built).getWorkspaceSize(in.data(), static_cast<int32_t>(in.size()), out.data(), static_cast<int32_t>(out.size())) !=
        node.workspace_bytes) {
        return -105;
    }
    const Plugin read(creator().createPlugin("node", runs(*built).getFieldsToSerialize(), nvinfer1::TensorRTPhase::kRUNTIME));
    const Plugin attached(runs(*read).attachToContext(nullptr));
    if (refuses_sizes(*attached, node)) {
        return -106;
    }
    const int code = runs(*attached).enqueue(
        node.inputs.data(), node.outputs.data(), node.read.data(), node.written.data(), node.workspace, nullptr);
    for (const auto& [input, axis] : node.bound) {
        node.inputs[input].dims.d[axis] += 7;
        if (!refuses_sizes(*attached, node)) {
            return -107;
        }
        node.inputs[input].dims.d[axis] -= 7;
    }
    return code;
}

}  // namespace dexport::testing
