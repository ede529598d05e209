#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace dexport {

/// A `.dxb` with one entry "a" of 5 bytes at byte 4096; `method` 0 says that it is stored.
[[nodiscard]] std::string sample_archive(std::uint64_t method = 0);

/// A safetensors file of that header and data.
[[nodiscard]] std::string tensor_file(const std::string& header, const std::string& data);

/// One with tensors "a", float32 of one 1; "b", uint8 of 1 and 2; and "e", int8 of nothing.
[[nodiscard]] std::string sample_tensor_file();

/// A tokenizer of whole words with three tokens for a prompt and one before and behind, changed by a JSON merge patch.
[[nodiscard]] std::string sample_tokenizer(const std::string& patch = "{}");

}  // namespace dexport
