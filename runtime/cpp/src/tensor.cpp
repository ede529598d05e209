#include "tensor.h"

#include <algorithm>
#include <array>
#include <stdexcept>

namespace dexport {
namespace {

struct Kind {
    Dtype dtype;
    const char* name;
    std::size_t bytes;
};

constexpr std::array<Kind, 12> kinds = {{
    {Dtype::boolean, "bool", 1},
    {Dtype::int8, "int8", 1},
    {Dtype::uint8, "uint8", 1},
    {Dtype::int16, "int16", 2},
    {Dtype::uint16, "uint16", 2},
    {Dtype::int32, "int32", 4},
    {Dtype::uint32, "uint32", 4},
    {Dtype::int64, "int64", 8},
    {Dtype::uint64, "uint64", 8},
    {Dtype::float16, "float16", 2},
    {Dtype::float32, "float32", 4},
    {Dtype::float64, "float64", 8},
}};

const Kind& kind_of(Dtype dtype) {
    return kinds[static_cast<std::size_t>(dtype)];
}

}  // namespace

std::size_t Tensor::elements() const {
    return elements_of(shape);
}

std::size_t Tensor::bytes() const {
    return elements() * bytes_of(dtype);
}

const char* name_of(Dtype dtype) {
    return kind_of(dtype).name;
}

Dtype dtype_named(std::string_view name) {
    const auto* found = std::find_if(kinds.begin(), kinds.end(), [&](const Kind& kind) { return kind.name == name; });
    if (found == kinds.end()) {
        throw std::out_of_range("dtype " + std::string(name));
    }
    return found->dtype;
}

std::size_t bytes_of(Dtype dtype) {
    return kind_of(dtype).bytes;
}

std::size_t elements_of(const Shape& shape) {
    std::size_t count = 1;
    for (const std::int64_t size : shape) {
        count *= static_cast<std::size_t>(size);
    }
    return count;
}

std::string shape_text(const Shape& shape) {
    std::string text;
    for (const std::int64_t size : shape) {
        text += (text.empty() ? "" : ", ") + std::to_string(size);
    }
    return "[" + text + "]";
}

std::string kind_text(Dtype dtype, const Shape& shape) {
    return std::string(name_of(dtype)) + " " + shape_text(shape);
}

}  // namespace dexport
