// The operation as a TensorRT plugin: dexport::BlockSparseAttention, version 1.
//
// Inputs: query, key, value; then, as far as the attributes say that they exist, indices and counts (lists), modes (modes) and key_bias
// (bias). Outputs: out, and lse where the attribute lse is 1. reference.py says what they are.
#include "tensorrt_plugin.h"

#include <cmath>

#include "launcher.h"

namespace {

using nvinfer1::DataType;

struct BlockSparseAttention {
    struct Attributes {
        float factor;
        int32_t query_block, key_block;
        int32_t lists, modes, bias, lse;
    };

    static constexpr const char* name = "BlockSparseAttention";
    static constexpr dexport::Field<Attributes> fields[] = {{"factor", nullptr, &Attributes::factor},
                                                            {"query_block", &Attributes::query_block, nullptr},
                                                            {"key_block", &Attributes::key_block, nullptr},
                                                            {"lists", &Attributes::lists, nullptr},
                                                            {"modes", &Attributes::modes, nullptr},
                                                            {"bias", &Attributes::bias, nullptr},
                                                            {"lse", &Attributes::lse, nullptr}};

    // Where the inputs are; -1 for what the node does not have.
    struct Positions {
        int32_t inputs = 3, indices, counts, modes, bias;

        explicit Positions(const Attributes& a)
            : indices(dexport::position_if(a.lists, inputs)),
              counts(dexport::position_if(a.lists, inputs)),
              modes(dexport::position_if(a.modes, inputs)),
              bias(dexport::position_if(a.bias, inputs)) {}
    };

    static bool valid(const Attributes& a) {
        using dexport::is_flag;
        const auto block = [](int32_t size) { return size > 0 && size % 64 == 0; };
        // A node without a factor has 0, which would weigh all keys alike.
        return std::isfinite(a.factor) && a.factor != 0 && block(a.query_block) && block(a.key_block) && is_flag(a.lists) &&
               is_flag(a.modes) && is_flag(a.bias) && is_flag(a.lse);
    }

    static int32_t outputs(const Attributes& a) { return 1 + a.lse; }

    static bool supports(const Attributes& a, int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t inputs) {
        const DataType type = tensors[position].desc.type;
        const Positions at(a);
        if (inputs != at.inputs) {
            return false;
        }
        if (position == 0) {
            return type == DataType::kHALF || type == DataType::kBF16;
        }
        if (position < 3 || position == inputs) {
            return type == tensors[0].desc.type;
        }
        return type == (position == at.bias || position > inputs ? DataType::kFLOAT : DataType::kINT32);
    }

    static void output_types(const Attributes&, dexport::Span<const DataType> in, dexport::Span<DataType> out) {
        out[0] = in[0];
        if (out.size > 1) {
            out[1] = DataType::kFLOAT;
        }
    }

    static bool output_shapes(const Attributes& a, dexport::Span<const nvinfer1::DimsExprs> in, dexport::Span<nvinfer1::DimsExprs> out,
                              nvinfer1::IExprBuilder&) {
        const Positions at(a);
        if (in.size != at.inputs || in[0].nbDims != 4 || in[1].nbDims != 4 || in[2].nbDims != 4 ||
            (at.indices >= 0 && (in[at.indices].nbDims != 4 || in[at.counts].nbDims != 3)) || (at.modes >= 0 && in[at.modes].nbDims != 1) ||
            (at.bias >= 0 && in[at.bias].nbDims != 3)) {
            return false;
        }
        out[0] = in[0];
        if (out.size > 1) {
            out[1] = in[0];
            out[1].nbDims = 3;
        }
        return true;
    }

    static size_t workspace(const Attributes&, dexport::Span<const nvinfer1::DynamicPluginTensorDesc>,
                            dexport::Span<const nvinfer1::DynamicPluginTensorDesc>) {
        return 0;
    }

    // What the launcher cannot see from sizes alone; what it sees it refuses itself.
    static bool shapes_fit(const Attributes& a, dexport::Span<const nvinfer1::PluginTensorDesc> in) {
        using dexport::same;
        using dexport::sizes;
        const Positions at(a);
        const auto query = in[0].dims.d, key = in[1].dims.d;
        const int64_t query_blocks = (query[2] + a.query_block - 1) / a.query_block;
        if (at.indices >= 0) {
            const auto lists = in[at.indices].dims.d;
            if (lists[2] != query_blocks || !same(in[at.counts].dims, sizes({lists[0], lists[1], query_blocks}))) {
                return false;
            }
        }
        return same(in[1].dims, sizes({query[0], key[1], key[2], query[3]})) && key[1] > 0 && query[1] % key[1] == 0 &&
               same(in[2].dims, in[1].dims) &&
               (at.modes < 0 || same(in[at.modes].dims, sizes({query[1]}))) && (at.bias < 0 || in[at.bias].dims.d[2] == key[2]);
    }

    static int32_t enqueue(const Attributes& a, const dexport::Tensors& tensors, cudaStream_t stream) {
        const Positions at(a);
        const auto size = [&](int32_t input, int32_t axis) { return static_cast<int32_t>(tensors.input_forms[input].dims.d[axis]); };
        DexportBlockSparseAttention request = {};
        request.query = tensors.inputs[0];
        request.key = tensors.inputs[1];
        request.value = tensors.inputs[2];
        request.out = tensors.outputs[0];
        request.lse = a.lse != 0 ? static_cast<float*>(tensors.outputs[1]) : nullptr;
        request.factor = a.factor;
        request.type = tensors.input_forms[0].type == DataType::kBF16 ? DEXPORT_BFLOAT16 : DEXPORT_FLOAT16;
        request.batch = size(0, 0);
        request.heads = size(0, 1);
        request.query_tokens = size(0, 2);
        request.key_tokens = size(1, 2);
        request.key_heads = static_cast<uint16_t>(size(1, 1));
        request.head_size = size(0, 3);
        request.query_block = a.query_block;
        request.key_block = a.key_block;
        request.indices = tensors.input<int32_t>(at.indices);
        request.counts = tensors.input<int32_t>(at.counts);
        request.modes = tensors.input<int32_t>(at.modes);
        request.key_bias = tensors.input<float>(at.bias);
        if (at.indices >= 0) {
            request.list_batch = size(at.indices, 0);
            request.list_heads = size(at.indices, 1);
            request.list_length = size(at.indices, 3);
        }
        if (at.bias >= 0) {
            request.bias_batch = size(at.bias, 0);
            request.bias_heads = size(at.bias, 1);
        }
        return dexport_block_sparse_attention(&request, stream);
    }
};

}  // namespace

DEXPORT_EXPORT_PLUGIN(BlockSparseAttention)
