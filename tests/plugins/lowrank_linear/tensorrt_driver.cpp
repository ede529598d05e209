// The node of a request of the launcher.
#include "launcher.h"
#include "tensorrt_node.h"

namespace {

using dexport::testing::DataType;
using dexport::testing::described;
using dexport::testing::field;
using dexport::testing::Node;

// x and y are [rows / rows_of_gate, rows_of_gate, ...], or of rank 2 without gates of a batch.
void add_tensors(Node& node, const DexportLowrankLinear& r) {
    const DataType type = r.type == 1 ? DataType::kBF16 : DataType::kHALF;
    const int32_t tokens = r.gate == nullptr ? r.rows : r.rows_of_gate, batch = r.rows / tokens;
    const auto rows_of = [&](int32_t width) {
        return batch == 1 ? described(type, {r.rows, width}) : described(type, {batch, tokens, width});
    };
    node.add(r.x, rows_of(r.inputs));
    node.add(r.weight, described(DataType::kINT32, {r.outputs, r.inputs / 8}));
    node.add(r.weight_scale, described(type, {r.weight_scales, r.outputs}));
    if (r.rank > 0) {
        node.add(r.down, described(type, {r.rank, r.inputs}));
        node.add(r.up, described(type, {r.outputs, r.rank}));
    }
    node.add(r.bias, described(type, {r.outputs}));
    node.add(r.gate, batch == 1 ? described(type, {r.outputs}) : described(type, {batch, 1, r.outputs}));
    node.add(r.residual, rows_of(r.outputs));
    node.add(r.activation_scale, described(type, {r.activation_scales}));
    node.outputs = {rows_of(r.outputs)};
    node.written = {r.y};
    // All but how many rows there are.
    node.bound = {{0, node.inputs[0].dims.nbDims - 1}};
    for (size_t i = 1; i < node.inputs.size(); ++i) {
        for (int32_t axis = 0; axis < node.inputs[i].dims.nbDims; ++axis) {
            node.bound.emplace_back(i, axis);
        }
    }
}

}  // namespace

extern "C" int multiply_by_plugin(const DexportLowrankLinear* request, void* /*stream*/) {
    const DexportLowrankLinear& r = *request;
    const int32_t flags[] = {r.rank > 0, r.bias != nullptr, r.gate != nullptr, r.activation_scale != nullptr};
    Node node;
    node.operation = "LowrankLinear";
    node.fields = {field("activation_bits", r.activation_bits),
                   field("activation_block", r.activation_block),
                   field("gelu", r.gelu),
                   field("branch", flags[0]),
                   field("bias", flags[1]),
                   field("gate", flags[2]),
                   field("scale", flags[3])};
    add_tensors(node, r);
    node.workspace = r.workspace;
    int64_t bytes = 0;
    if (const int wrong = dexport_lowrank_linear_workspace(request, &bytes); wrong != 0) {
        return wrong;
    }
    node.workspace_bytes = static_cast<size_t>(bytes);
    return dexport::testing::run(node);
}

// Whether the creator refuses a node with this attribute, which is right in all others.
extern "C" int refuses(const char* name, int value) {
    const int32_t bits = 4, block = 64;
    std::vector<nvinfer1::PluginField> fields = {field("activation_bits", bits), field("activation_block", block)};
    fields.push_back(field(name, value));
    return dexport::testing::created(fields) == nullptr;
}
