#include <algorithm>
#include <cstdlib>
#include <string>

#include "target.h"
#include "tensor_file.h"

using namespace dexport;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
    return read_stranger(data, bytes, [](std::string_view text) {
        std::string file(text);
        std::ptrdiff_t zeros = 0;
        for (const auto& item : tensors_from_bytes(reinterpret_cast<std::byte*>(file.data()), file.size(), "tables.safetensors")) {
            const Tensor& tensor = item.second;  // every byte that a tensor claims must be there to be read
            zeros += std::count(tensor.data, tensor.data + tensor.bytes(), std::byte{});
        }
        if (zeros > static_cast<std::ptrdiff_t>(file.size())) {  // tensors overlap
            std::abort();
        }
    });
}
