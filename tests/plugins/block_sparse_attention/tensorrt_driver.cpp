// Uses the plugin as TensorRT does, without TensorRT: creates it by name, writes it into a plan and reads it back, asks it for formats and
// starts it. Its arguments are a request of the launcher, so that the launcher's tests run through the plugin too.
#include <NvInferRuntime.h>

#include <cstring>
#include <memory>
#include <vector>

#include "launcher.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);

namespace {

using nvinfer1::DataType;
using nvinfer1::PluginTensorDesc;

struct Node {
    std::vector<PluginTensorDesc> inputs, outputs;
    std::vector<const void*> read;
    std::vector<void*> written;
};

PluginTensorDesc described(DataType type, std::vector<int32_t> sizes) {
    PluginTensorDesc desc = {};
    desc.dims.nbDims = static_cast<int32_t>(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) {
        desc.dims.d[i] = sizes[i];
    }
    desc.type = type;
    desc.format = nvinfer1::PluginFormat::kLINEAR;
    return desc;
}

Node node_of(const DexportBlockSparseAttention& r) {
    const DataType type = r.type == DEXPORT_BFLOAT16 ? DataType::kBF16 : DataType::kHALF;
    const auto query = described(type, {r.batch, r.heads, r.query_tokens, r.head_size});
    const auto key = described(type, {r.batch, r.heads, r.key_tokens, r.head_size});
    const int32_t blocks = (r.query_tokens + r.query_block - 1) / r.query_block;
    Node node = {{query, key, key}, {query}, {r.query, r.key, r.value}, {r.out}};
    const auto add = [&](const void* pointer, const PluginTensorDesc& desc) {
        if (pointer != nullptr) {
            node.inputs.push_back(desc);
            node.read.push_back(pointer);
        }
    };
    add(r.indices, described(DataType::kINT32, {r.list_batch, r.list_heads, blocks, r.list_length}));
    add(r.counts, described(DataType::kINT32, {r.list_batch, r.list_heads, blocks}));
    add(r.modes, described(DataType::kINT32, {r.heads}));
    add(r.key_bias, described(DataType::kFLOAT, {r.bias_batch, r.bias_heads, r.key_tokens}));
    if (r.lse != nullptr) {
        node.outputs.push_back(described(DataType::kFLOAT, {r.batch, r.heads, r.query_tokens}));
        node.written.push_back(r.lse);
    }
    return node;
}

template <class Capability>
Capability* capability(nvinfer1::IPluginV3& plugin, nvinfer1::PluginCapabilityType type) {
    return static_cast<Capability*>(plugin.getCapabilityInterface(type));
}

bool takes_formats(nvinfer1::IPluginV3OneBuild& build, const Node& node, DataType last) {
    std::vector<nvinfer1::DynamicPluginTensorDesc> tensors;
    for (const auto* list : {&node.inputs, &node.outputs}) {
        for (const PluginTensorDesc& desc : *list) {
            tensors.emplace_back();
            tensors.back().desc = desc;
        }
    }
    tensors.back().desc.type = last;
    const auto inputs = static_cast<int32_t>(node.inputs.size()), all = static_cast<int32_t>(tensors.size());
    bool every = true;
    for (int32_t i = 0; i < all; ++i) {
        every = build.supportsFormatCombination(i, tensors.data(), inputs, all - inputs) && every;
    }
    return every;
}

}  // namespace

// The code of enqueue; from -101 on, what the plugin does wrong before.
extern "C" int attend_by_plugin(const DexportBlockSparseAttention* request, void* /*stream*/) {
    const DexportBlockSparseAttention& r = *request;
    int32_t count = 0;
    auto& creator = static_cast<nvinfer1::IPluginCreatorV3One&>(*getCreators(count)[0]);
    if (count != 1 || std::strcmp(creator.getPluginName(), "BlockSparseAttention") != 0 || creator.getFieldNames()->nbFields != 7) {
        return -101;
    }
    const int32_t flags[] = {r.indices != nullptr, r.modes != nullptr, r.key_bias != nullptr, r.lse != nullptr};
    using Type = nvinfer1::PluginFieldType;
    const nvinfer1::PluginField fields[] = {
        {"factor", &r.factor, Type::kFLOAT32, 1},     {"query_block", &r.query_block, Type::kINT32, 1},
        {"key_block", &r.key_block, Type::kINT32, 1}, {"lists", &flags[0], Type::kINT32, 1},
        {"modes", &flags[1], Type::kINT32, 1},        {"bias", &flags[2], Type::kINT32, 1},
        {"lse", &flags[3], Type::kINT32, 1},          {"plugin_version", "1", Type::kCHAR, 1},
    };
    const nvinfer1::PluginFieldCollection given = {8, fields};
    const std::unique_ptr<nvinfer1::IPluginV3> built(creator.createPlugin("node", &given, nvinfer1::TensorRTPhase::kBUILD));
    if (built == nullptr) {
        return -102;
    }
    Node node = node_of(r);
    auto& build = *capability<nvinfer1::IPluginV3OneBuild>(*built, nvinfer1::PluginCapabilityType::kBUILD);
    DataType types[2] = {DataType::kINT8, DataType::kINT8};
    const DataType in[] = {node.inputs[0].type};
    build.getOutputDataTypes(types, build.getNbOutputs(), in, 1);
    if (build.getNbOutputs() != static_cast<int32_t>(node.outputs.size()) || types[0] != in[0] ||
        !takes_formats(build, node, node.outputs.back().type) || takes_formats(build, node, DataType::kINT8)) {
        return -103;
    }
    auto& writer = *capability<nvinfer1::IPluginV3OneRuntime>(*built, nvinfer1::PluginCapabilityType::kRUNTIME);
    const std::unique_ptr<nvinfer1::IPluginV3> read(
        creator.createPlugin("node", writer.getFieldsToSerialize(), nvinfer1::TensorRTPhase::kRUNTIME));
    const std::unique_ptr<nvinfer1::IPluginV3> attached(
        capability<nvinfer1::IPluginV3OneRuntime>(*read, nvinfer1::PluginCapabilityType::kRUNTIME)->attachToContext(nullptr));
    auto& run = *capability<nvinfer1::IPluginV3OneRuntime>(*attached, nvinfer1::PluginCapabilityType::kRUNTIME);
    const auto inputs = static_cast<int32_t>(node.inputs.size()), outputs = static_cast<int32_t>(node.outputs.size());
    if (run.onShapeChange(node.inputs.data(), inputs, node.outputs.data(), outputs) != 0) {
        return -104;
    }
    const int code = run.enqueue(node.inputs.data(), node.outputs.data(), node.read.data(), node.written.data(), nullptr, nullptr);
    node.inputs[1].dims.d[3] += 1;
    return run.onShapeChange(node.inputs.data(), inputs, node.outputs.data(), outputs) == 0 ? -105 : code;
}

// Whether the creator refuses a node with these attributes.
extern "C" int refuses(float factor, int query_block, int lists, const char* unknown) {
    int32_t count = 0;
    auto& creator = static_cast<nvinfer1::IPluginCreatorV3One&>(*getCreators(count)[0]);
    using Type = nvinfer1::PluginFieldType;
    const int32_t key_block = 64;
    const nvinfer1::PluginField fields[] = {
        {"factor", &factor, Type::kFLOAT32, 1},
        {"query_block", &query_block, Type::kINT32, 1},
        {"key_block", &key_block, Type::kINT32, 1},
        {"lists", &lists, Type::kINT32, 1},
        {unknown, &key_block, Type::kINT32, 1},
    };
    const nvinfer1::PluginFieldCollection given = {unknown == nullptr ? 4 : 5, fields};
    return std::unique_ptr<nvinfer1::IPluginV3>(creator.createPlugin("node", &given, nvinfer1::TensorRTPhase::kBUILD)) == nullptr;
}
