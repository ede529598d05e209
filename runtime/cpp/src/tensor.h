#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dexport {

/// Element types, by numpy's names. bfloat16 and float8 are kept as their bits, in uint16 and uint8.
enum class Dtype { boolean, int8, uint8, int16, uint16, int32, uint32, int64, uint64, float16, float32, float64 };

using Shape = std::vector<std::int64_t>;

/// Numbers in row-major order in memory that something else owns.
struct Tensor {
    Dtype dtype;
    Shape shape;
    std::byte* data;

    [[nodiscard]] std::size_t elements() const;
    [[nodiscard]] std::size_t bytes() const;
};

/// numpy's name: "float32", "bool".
[[nodiscard]] const char* name_of(Dtype dtype);

/// The type of that name; throws std::out_of_range for another.
[[nodiscard]] Dtype dtype_named(std::string_view name);

/// Bytes of one element.
[[nodiscard]] std::size_t bytes_of(Dtype dtype);

/// Elements of a tensor of that shape.
[[nodiscard]] std::size_t elements_of(const Shape& shape);

/// "[1, 4, 8]".
[[nodiscard]] std::string shape_text(const Shape& shape);

/// "float32 [1, 4, 8]".
[[nodiscard]] std::string kind_text(Dtype dtype, const Shape& shape);

}  // namespace dexport
