// The launcher of lowrank_linear: refuses what the kernels cannot do, divides the workspace and starts both.
#include "launcher.h"

#include <limits.h>

#include "multiply.h"
#include "quantize.h"

namespace dexport::lowrank_linear {
namespace {

struct Workspace {
    size_t scales, narrow, bytes;
};

size_t aligned(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

int scale_pitch(const DexportLowrankLinear& given) {
    return (given.rows + 7) / 8 * 8;
}

Workspace divide(const DexportLowrankLinear& given) {
    const auto rows = static_cast<size_t>(given.rows), inputs = static_cast<size_t>(given.inputs);
    const size_t groups = given.activation_block == 0 ? 1 : inputs / group;
    const size_t scales = aligned(rows * inputs * static_cast<size_t>(given.activation_bits) / 8);
    const size_t narrow = scales + aligned(2 * groups * static_cast<size_t>(scale_pitch(given)));
    return {scales, narrow, narrow + aligned(2 * rows * static_cast<size_t>(given.rank))};
}

bool blocks_fit(const DexportLowrankLinear& given) {
    const int groups = given.inputs / group, scales = given.activation_block == 0 ? 1 : groups;
    return (given.activation_block == 0 || given.activation_block == group) &&
           (given.activation_scales == 0 || given.activation_scales == scales) &&
           (given.weight_scales == 1 || given.weight_scales == groups);
}

// The code for what is wrong with the numbers of a request, as launcher.h lists them.
int check_numbers(const DexportLowrankLinear& given) {
    // Both factors of an integer product may be 16 times as large as their codes: 128 at most.
    constexpr int most_rows = 1 << 30, most_inputs = INT_MAX / (128 * 128), most_outputs = 65535 * tile_outputs;
    if (given.rows < 0 || given.inputs < 0 || given.outputs < 0 || given.rank < 0 || given.rows > most_rows || given.inputs > most_inputs ||
        given.outputs > most_outputs) {
        return -5;
    }
    if (given.inputs == 0 || given.inputs % group != 0 || given.outputs == 0 || given.outputs % 8 != 0 || given.rank % 16 != 0 ||
        given.rank > most_rank) {
        return -2;
    }
    if ((given.type != 0 && given.type != 1) || (given.activation_bits != 4 && given.activation_bits != 8)) {
        return -3;
    }
    return blocks_fit(given) ? 0 : -4;
}

bool is_aligned(const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

bool is_given(const void* pointer) {
    return pointer != nullptr && is_aligned(pointer);
}

int check(const DexportLowrankLinear& given) {
    if (const int wrong = check_numbers(given); wrong != 0 || given.rows == 0) {
        return wrong;
    }
    const bool branch = given.rank == 0 || (is_given(given.down) && is_given(given.up));
    const bool scales = (given.activation_scale == nullptr) == (given.activation_scales == 0) && is_aligned(given.activation_scale);
    const bool gate = given.gate == nullptr ? given.residual == nullptr : is_aligned(given.gate) && is_given(given.residual);
    if (!is_given(given.x) || !is_given(given.weight) || !is_given(given.weight_scale) || !branch || !is_aligned(given.bias) || !gate ||
        !scales || !is_given(given.y) || !is_given(given.workspace)) {
        return -1;
    }
    return given.gate == nullptr || (given.rows_of_gate > 0 && given.rows % given.rows_of_gate == 0) ? 0 : -6;
}

template <class To>
To* at(void* workspace, size_t offset) {
    return reinterpret_cast<To*>(static_cast<unsigned char*>(workspace) + offset);
}

unsigned tiles(int all, int tile) {
    return (static_cast<unsigned>(all) + static_cast<unsigned>(tile) - 1) / static_cast<unsigned>(tile);
}

template <class T, int bits>
int start_quantize(const DexportLowrankLinear& given, const Workspace& parts, void* stream) {
    const QuantizeArguments arguments{static_cast<const unsigned char*>(given.x), static_cast<const unsigned char*>(given.down),
                                      static_cast<const uint16_t*>(given.activation_scale), at<unsigned char>(given.workspace, 0),
                                      at<uint16_t>(given.workspace, parts.scales), at<uint32_t>(given.workspace, parts.narrow),
                                      given.rows, given.inputs, given.rank, scale_pitch(given), given.activation_block};
    const auto start_ranks = [&](auto ranks) {
        using R = decltype(ranks);
        const dim3 grid(tiles(given.rows, quantize_rows));
        return launch(quantize<T, bits, R>, grid, R::threads, R::shared_bytes(given.rank), stream, arguments);
    };
    return given.rank <= 32 ? start_ranks(Ranks<1>{}) : given.rank <= 64 ? start_ranks(Ranks<2>{}) : start_ranks(Ranks<4>{});
}

template <class T, int bits, Product product>
int start_multiply(const DexportLowrankLinear& given, const Workspace& parts, void* stream) {
    const MultiplyArguments arguments{
        at<unsigned char>(given.workspace, 0), at<uint16_t>(given.workspace, parts.scales), static_cast<const unsigned char*>(given.weight),
        static_cast<const uint16_t*>(given.weight_scale), at<unsigned char>(given.workspace, parts.narrow),
        static_cast<const unsigned char*>(given.up), static_cast<const uint32_t*>(given.bias), static_cast<const uint32_t*>(given.gate),
        static_cast<const uint32_t*>(given.residual), static_cast<uint32_t*>(given.y), given.rows, given.inputs, given.outputs, given.rank,
        scale_pitch(given), given.rows_of_gate, given.activation_block, given.weight_scales - 1, given.gelu};
    const auto start_form = [&](auto kernel, int rows, int shared_bytes) {
        const dim3 grid(tiles(given.rows, rows), tiles(given.outputs, tile_outputs));
        return launch(kernel, grid, multiply_threads, static_cast<size_t>(shared_bytes), stream, arguments);
    };
    using Groups = Form<bits, true, false>;
    using Whole = Form<bits, false, false>;
    const bool grouped = given.activation_block != 0 || given.weight_scales != 1;
    return grouped ? start_form(multiply<T, bits, true, product>, Groups::rows, Groups::stages * Groups::stage_bytes)
                   : start_form(multiply<T, bits, false, product>, Whole::rows, Whole::stages * Whole::stage_bytes);
}

template <class T>
int start(const DexportLowrankLinear& given, void* stream) {
    const Workspace parts = divide(given);
    const bool four = given.activation_bits == 4;
    if (const int code = four ? start_quantize<T, 4>(given, parts, stream) : start_quantize<T, 8>(given, parts, stream); code != 0) {
        return code;
    }
    if (!four) {
        return start_multiply<T, 8, Product::int8>(given, parts, stream);
    }
    return given.product == 0 ? start_multiply<T, 4, Product::native>(given, parts, stream)
                              : start_multiply<T, 4, Product::int8>(given, parts, stream);
}

}  // namespace
}  // namespace dexport::lowrank_linear

extern "C" int dexport_lowrank_linear_workspace(const DexportLowrankLinear* request, int64_t* bytes) {
    if (request == nullptr || bytes == nullptr) {
        return -1;
    }
    const int wrong = dexport::lowrank_linear::check_numbers(*request);
    *bytes = wrong == 0 ? static_cast<int64_t>(dexport::lowrank_linear::divide(*request).bytes) : 0;
    return wrong;
}

extern "C" int dexport_lowrank_linear(const DexportLowrankLinear* request, void* stream) {
    if (request == nullptr) {
        return -1;
    }
    if (const int wrong = dexport::lowrank_linear::check(*request); wrong != 0 || request->rows == 0) {
        return wrong;
    }
    return request->type == 0 ? dexport::lowrank_linear::start<dexport::Half>(*request, stream)
                              : dexport::lowrank_linear::start<dexport::BFloat16>(*request, stream);
}
