// The node of a request of the launcher.
#include "launcher.h"
#include "tensorrt_node.h"

namespace {

using dexport::testing::DataType;
using dexport::testing::described;
using dexport::testing::field;
using dexport::testing::Node;

void add_inputs(Node& node, const DexportBlockSparseAttention& r) {
    const DataType type = r.type == DEXPORT_BFLOAT16 ? DataType::kBF16 : DataType::kHALF;
    const int32_t blocks = (r.query_tokens + r.query_block - 1) / r.query_block;
    node.add(r.query, described(type, {r.batch, r.heads, r.query_tokens, r.head_size}));
    node.add(r.key, described(type, {r.batch, r.key_heads, r.key_tokens, r.head_size}));
    node.add(r.value, described(type, {r.batch, r.key_heads, r.key_tokens, r.head_size}));
    const auto bind = [&](std::initializer_list<int32_t> axes) {
        for (const int32_t axis : axes) {
            node.bound.emplace_back(node.inputs.size() - 1, axis);
        }
    };
    bind({0, 1, 2, 3});
    if (r.indices != nullptr) {
        node.add(r.indices, described(DataType::kINT32, {r.list_batch, r.list_heads, blocks, r.list_length}));
        bind({0, 1, 2});
        node.add(r.counts, described(DataType::kINT32, {r.list_batch, r.list_heads, blocks}));
        bind({0, 1, 2});
    }
    if (r.modes != nullptr) {
        node.add(r.modes, described(DataType::kINT32, {r.heads}));
        bind({0});
    }
    if (r.key_bias != nullptr) {
        node.add(r.key_bias, described(DataType::kFLOAT, {r.bias_batch, r.bias_heads, r.key_tokens}));
        bind({2});
    }
}

}  // namespace

extern "C" int attend_by_plugin(const DexportBlockSparseAttention* request, void* /*stream*/) {
    const DexportBlockSparseAttention& r = *request;
    const int32_t flags[] = {r.indices != nullptr, r.modes != nullptr, r.key_bias != nullptr, r.lse != nullptr};
    Node node;
    node.operation = "BlockSparseAttention";
    node.fields = {field("factor", r.factor),
                   field("query_block", r.query_block),
                   field("key_block", r.key_block),
                   field("lists", flags[0]),
                   field("modes", flags[1]),
                   field("bias", flags[2]),
                   field("lse", flags[3])};
    add_inputs(node, r);
    node.outputs = {node.inputs[0]};
    node.written = {r.out};
    if (r.lse != nullptr) {
        node.outputs.push_back(described(DataType::kFLOAT, {r.batch, r.heads, r.query_tokens}));
        node.written.push_back(r.lse);
    }
    return dexport::testing::run(node);
}

// Whether the creator refuses a node with these attributes.
extern "C" int refuses(float factor, int query_block, int lists, const char* unknown) {
    const int32_t key_block = 64;
    std::vector<nvinfer1::PluginField> fields = {field("factor", factor), field("query_block", query_block), field("key_block", key_block),
                                                 field("lists", lists)};
    if (unknown != nullptr) {
        fields.push_back(field(unknown, key_block));
    }
    return dexport::testing::created(fields) == nullptr;
}
