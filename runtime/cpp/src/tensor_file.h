#pragma once

#include <map>
#include <string>

#include "tensor.h"

namespace dexport {

using Tensors = std::map<std::string, Tensor, std::less<>>;

/// Views of all tensors in a safetensors file that lies in memory, which must outlive them; nothing is copied.
///
/// Layout (huggingface/safetensors, README, "Format"): 8 bytes little-endian N, N bytes of JSON {name: {dtype, shape,
/// data_offsets: [begin, end]}}, then the data. bfloat16 comes as its bits in uint16, float8 as its bits in uint8.
/// Throws a user error: the header is malformed, or tensors overlap, leave gaps or do not fit the file.
[[nodiscard]] Tensors tensors_from_bytes(std::byte* data, std::size_t bytes, const std::string& where);

}  // namespace dexport
