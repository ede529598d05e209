// The operation as a TensorRT plugin: dexport::LowrankLinear, version 1.
//
// Inputs: x, weight, weight_scale; then, as far as the attributes say that they exist, down and up (branch), bias (bias), gate and residual
// (gate), activation_scale (scale). Output: y. reference.py says what they are, but for weight: TensorRT has no constants of uint8, so its
// bytes come as int32 [outputs, inputs / 8], eight codes in a number.
#include "tensorrt_plugin.h"

#include <climits>

#include "launcher.h"

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

struct LowrankLinear {
    struct Attributes {
        int32_t activation_bits, activation_block, gelu;
        int32_t branch, bias, gate, scale;
    };

    static constexpr const char* name = "LowrankLinear";
    static constexpr dexport::Field<Attributes> fields[] = {{"activation_bits", &Attributes::activation_bits, nullptr},
                                                            {"activation_block", &Attributes::activation_block, nullptr},
                                                            {"gelu", &Attributes::gelu, nullptr},
                                                            {"branch", &Attributes::branch, nullptr},
                                                            {"bias", &Attributes::bias, nullptr},
                                                            {"gate", &Attributes::gate, nullptr},
                                                            {"scale", &Attributes::scale, nullptr}};

    // Where the inputs are; -1 for what the node does not have.
    struct Positions {
        int32_t inputs = 3, down, up, bias, gate, residual, scale;

        explicit Positions(const Attributes& a)
            : down(dexport::position_if(a.branch, inputs)),
              up(dexport::position_if(a.branch, inputs)),
              bias(dexport::position_if(a.bias, inputs)),
              gate(dexport::position_if(a.gate, inputs)),
              residual(dexport::position_if(a.gate, inputs)),
              scale(dexport::position_if(a.scale, inputs)) {}
    };

    static constexpr int32_t group = 64;

    static bool valid(const Attributes& a) {
        using dexport::is_flag;
        return (a.activation_bits == 4 || a.activation_bits == 8) && (a.activation_block == 0 || a.activation_block == group) &&
               is_flag(a.gelu) && is_flag(a.branch) && is_flag(a.bias) && is_flag(a.gate) && is_flag(a.scale);
    }

    static int32_t outputs(const Attributes&) { return 1; }

    static bool supports(const Attributes& a, int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t inputs) {
        const DataType type = tensors[position].desc.type;
        if (inputs != Positions(a).inputs) {
            return false;
        }
        if (position == 0) {
            return type == DataType::kHALF || type == DataType::kBF16;
        }
        return type == (position == 1 ? DataType::kINT32 : tensors[0].desc.type);
    }

    static void output_types(const Attributes&, dexport::Span<const DataType> in, dexport::Span<DataType> out) { out[0] = in[0]; }

    static bool output_shapes(const Attributes& a, dexport::Span<const nvinfer1::DimsExprs> in, dexport::Span<nvinfer1::DimsExprs> out,
                              nvinfer1::IExprBuilder&) {
        const Positions at(a);
        const auto has_rank = [&](int32_t position, int32_t rank) { return position < 0 || in[position].nbDims == rank; };
        if (in.size != at.inputs || in[0].nbDims < 2) {
            return false;
        }
        const int32_t rank = in[0].nbDims;
        if (!has_rank(1, 2) || !has_rank(2, 2) || !has_rank(at.down, 2) || !has_rank(at.up, 2) || !has_rank(at.bias, 1) ||
            !(has_rank(at.gate, 1) || has_rank(at.gate, rank)) || !has_rank(at.residual, rank) || !has_rank(at.scale, 1)) {
            return false;
        }
        out[0] = in[0];
        out[0].d[rank - 1] = in[1].d[0];
        return true;
    }

    static size_t workspace(const Attributes& a, dexport::Span<const nvinfer1::DynamicPluginTensorDesc> in,
                            dexport::Span<const nvinfer1::DynamicPluginTensorDesc>) {
        const auto largest = [&](int32_t input) -> const Dims& { return in[input].max; };
        const DexportLowrankLinear request = sized(a, largest, in[0].desc.type);
        int64_t bytes = 0;
        // Sizes that the launcher refuses are refused again when it starts.
        dexport_lowrank_linear_workspace(&request, &bytes);
        return static_cast<size_t>(bytes);
    }

    // The numbers of a request, from the sizes of inputs.
    template <class DimsOf>
    static DexportLowrankLinear sized(const Attributes& a, const DimsOf& dims_of, DataType type) {
        const Positions at(a);
        const Dims& x = dims_of(0);
        // Beyond what the launcher takes, all are too large alike.
        const auto number = [](int64_t size) { return static_cast<int32_t>(std::min<int64_t>(size, INT_MAX)); };
        int64_t rows = 1;
        for (int32_t axis = 0; axis + 1 < x.nbDims; ++axis) {
            rows = number(rows * x.d[axis]);
        }
        DexportLowrankLinear request = {};
        request.type = type == DataType::kBF16 ? 1 : 0;
        request.activation_bits = a.activation_bits;
        request.activation_block = a.activation_block;
        request.weight_scales = number(dims_of(2).d[0]);
        request.activation_scales = at.scale < 0 ? 0 : number(dims_of(at.scale).d[0]);
        request.rows = number(rows);
        request.inputs = number(x.d[x.nbDims - 1]);
        request.outputs = number(dims_of(1).d[0]);
        request.rank = at.down < 0 ? 0 : number(dims_of(at.down).d[0]);
        request.gelu = a.gelu;
        request.rows_of_gate = at.gate < 0 ? 0 : dims_of(at.gate).nbDims == 1 ? request.rows : number(x.d[x.nbDims - 2]);
        return request;
    }

    // All that shapes.py checks.
    static bool shapes_fit(const Attributes& a, dexport::Span<const nvinfer1::PluginTensorDesc> in) {
        const Positions at(a);
        Dims y = in[0].dims;
        const int64_t inputs = y.d[y.nbDims - 1], outputs = in[1].dims.d[0], groups = inputs / group;
        y.d[y.nbDims - 1] = outputs;
        Dims gates = y;
        gates.d[gates.nbDims - 2] = 1;
        const auto has = [&](int32_t position, const Dims& dims) { return position < 0 || dexport::same(in[position].dims, dims); };
        using dexport::sizes;
        const int64_t rank = at.down < 0 ? 0 : in[at.down].dims.d[0];
        const bool weights = has(1, sizes({outputs, inputs / 8})) && (has(2, sizes({1, outputs})) || has(2, sizes({groups, outputs})));
        const bool branch = has(at.down, sizes({rank, inputs})) && has(at.up, sizes({outputs, rank}));
        const bool gate = (has(at.gate, sizes({outputs})) || has(at.gate, gates)) && has(at.residual, y);
        const bool epilogue = has(at.bias, sizes({outputs})) && gate;
        return inputs % group == 0 && weights && branch && epilogue && has(at.scale, sizes({a.activation_block != 0 ? groups : 1}));
    }

    static int32_t enqueue(const Attributes& a, const dexport::Tensors& tensors, cudaStream_t stream) {
        const Positions at(a);
        const auto dims_of = [&](int32_t input) -> const Dims& { return tensors.input_forms[input].dims; };
        DexportLowrankLinear request = sized(a, dims_of, tensors.input_forms[0].type);
        request.x = tensors.inputs[0];
        request.weight = tensors.inputs[1];
        request.weight_scale = tensors.inputs[2];
        request.down = tensors.input<void>(at.down);
        request.up = tensors.input<void>(at.up);
        request.bias = tensors.input<void>(at.bias);
        request.gate = tensors.input<void>(at.gate);
        request.residual = tensors.input<void>(at.residual);
        request.activation_scale = tensors.input<void>(at.scale);
        request.y = tensors.outputs[0];
        request.workspace = tensors.workspace;
        return dexport_lowrank_linear(&request, stream);
    }
};

}  // namespace

DEXPORT_EXPORT_PLUGIN(LowrankLinear)
