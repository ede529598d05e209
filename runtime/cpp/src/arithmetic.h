#pragma once

#include <cstddef>
#include <vector>

#include "tensor.h"

namespace dexport {

/// One summand of a sum: `data` is read as `dtype` (float32 or float16), times `scale`, or times `scales` element by element.
struct Summand {
    Dtype dtype;
    const std::byte* data;
    float scale;
    const float* scales;  ///< null where one number scales all
};

/// out[i] = sum of summand[i] * scale, every product and sum rounded to float32, in the order of the summands, then to `dtype`.
/// A summand may be the memory of `out` itself, as each element is read before it is written; else they must not overlap.
void add_up(const std::vector<Summand>& summands, Dtype dtype, std::byte* out, std::size_t elements);

/// Copies numbers of `dtype`, float32 or float16, as float32.
void widen(Dtype dtype, const std::byte* data, std::size_t elements, float* out);

/// Copies `source` of shape `from` into `target` of shape `to`, repeated as numpy broadcasts it (axes aligned at the end).
void broadcast(const std::byte* source, const Shape& from, std::byte* target, const Shape& to, std::size_t element_bytes);

/// How many of `elements` numbers are NaN or infinite; 0 for types that are no floats.
[[nodiscard]] std::size_t count_not_finite(Dtype dtype, const std::byte* data, std::size_t elements);

}  // namespace dexport
