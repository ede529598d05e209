#include "tensor_file.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "error.h"
#include "json.h"
#include "little_endian.h"

namespace dexport {
namespace {

constexpr std::size_t max_header_bytes = 4 << 20, max_dimensions = 8;

constexpr std::array<std::pair<const char*, Dtype>, 14> dtypes = {{
    {"BOOL", Dtype::boolean},
    {"I8", Dtype::int8},
    {"U8", Dtype::uint8},
    {"I16", Dtype::int16},
    {"U16", Dtype::uint16},
    {"I32", Dtype::int32},
    {"U32", Dtype::uint32},
    {"I64", Dtype::int64},
    {"U64", Dtype::uint64},
    {"F16", Dtype::float16},
    {"F32", Dtype::float32},
    {"F64", Dtype::float64},
    {"BF16", Dtype::uint16},
    {"F8_E4M3", Dtype::uint8},
}};

/// One tensor as its header describes it.
struct Entry {
    Dtype dtype;
    Shape shape;
    std::uint64_t begin;
    std::uint64_t end;
};

Error bad(const std::string& where, const std::string& expected, const std::string& got) {
    return user_error(where, expected, got, get_again);
}

/// Whether all are whole numbers that a double holds exactly.
bool are_counts(const Json& values) {
    constexpr std::int64_t limit = std::int64_t{1} << 53;
    return values.is_array() && std::all_of(values.begin(), values.end(),
                                            [](const Json& value) { return value.is_number_integer() && value >= 0 && value < limit; });
}

/// A list as Python spells it.
std::string list_text(const Json& value) {
    std::string text;
    for (const Json& item : value) {
        text += (text.empty() ? "" : ", ") + (item.is_string()  ? repr(item.get<std::string>())
                                              : item.is_array() ? list_text(item)
                                                                : shown_value(item));
    }
    return value.is_array() ? "[" + text + "]" : value.is_string() ? repr(value.get<std::string>()) : shown_value(value);
}

/// Whether the sizes that are not 0 have a product that an array's length can be, as numpy asks of all arrays.
bool can_be_held(const Shape& shape, std::uint64_t bytes) {
    std::int64_t product = static_cast<std::int64_t>(bytes);
    return std::all_of(shape.begin(), shape.end(),
                       [&](std::int64_t size) { return size == 0 || !__builtin_mul_overflow(product, size, &product); });
}

/// The product of sizes, or a number that no file has where it does not fit.
std::uint64_t product(const Shape& shape, std::uint64_t bytes) {
    std::uint64_t result = bytes;
    for (const std::int64_t size : shape) {
        if (__builtin_mul_overflow(result, static_cast<std::uint64_t>(size), &result)) {
            return ~std::uint64_t{0};
        }
    }
    return result;
}

std::string python_json(const Json& value) {
    return shown(value.dump(-1, ' ', true));
}

Entry checked(const Json& entry, const std::string& place) {
    if (!entry.is_object() || entry.size() != 3 || !entry.contains("dtype") || !entry.contains("shape") ||
        !entry.contains("data_offsets")) {
        throw bad(place, "the keys dtype, shape and data_offsets", python_json(entry));
    }
    const Json &name = entry.at("dtype"), &shape = entry.at("shape"), &offsets = entry.at("data_offsets");
    const auto* dtype =
        std::find_if(dtypes.begin(), dtypes.end(), [&](const auto& item) { return name.is_string() && name == item.first; });
    if (dtype == dtypes.end()) {
        std::string known;
        for (const auto& item : dtypes) {
            known += (known.empty() ? "" : ", ") + std::string(item.first);
        }
        throw bad(place, "a dtype of " + known, shown_value(name));
    }
    if (!are_counts(shape) || shape.size() > max_dimensions || !are_counts(offsets) || offsets.size() != 2) {
        throw bad(place, "lists of whole numbers", "shape " + shown(list_text(shape)) + ", data_offsets " + shown(list_text(offsets)));
    }
    const Entry result = {dtype->second, shape.get<Shape>(), offsets[0].get<std::uint64_t>(), offsets[1].get<std::uint64_t>()};
    const std::uint64_t wanted = product(result.shape, bytes_of(result.dtype));
    if (result.end < result.begin || result.end - result.begin != wanted) {
        const auto got = static_cast<std::int64_t>(result.end) - static_cast<std::int64_t>(result.begin);
        const std::string kind = name.get<std::string>() + " " + shape_text(result.shape);
        throw bad(place, std::to_string(wanted) + " bytes for " + kind, std::to_string(got));
    }
    return result;
}

/// Where a tensor's data begins, for sorting; anything malformed sorts first and is refused by `checked`.
std::pair<std::int64_t, bool> begin_of(const Json& entry) {
    if (entry.is_object() && entry.contains("data_offsets")) {
        const Json& offsets = entry.at("data_offsets");
        if (are_counts(offsets) && offsets.size() == 2) {
            return {offsets[0].get<std::int64_t>(), offsets[1] > offsets[0]};  // an empty tensor before the one that begins where it does
        }
    }
    return {-1, false};
}

}  // namespace

Tensors tensors_from_bytes(std::byte* data, std::size_t bytes, const std::string& where) {
    constexpr std::size_t length_bytes = 8;
    if (bytes < length_bytes) {
        throw bad(where, "a header of at least 8 bytes", std::to_string(bytes) + " bytes");
    }
    const std::uint64_t header_bytes = little_endian({reinterpret_cast<const char*>(data), length_bytes});
    const std::size_t most = std::min(bytes - length_bytes, max_header_bytes);
    if (header_bytes > most) {
        throw bad(where, "a header of at most " + std::to_string(most) + " bytes", std::to_string(header_bytes));
    }
    const std::string_view text(reinterpret_cast<const char*>(data) + length_bytes, header_bytes);
    const Json header = parse_json(text, where, max_header_bytes);
    if (!header.is_object()) {
        throw bad(where, "a JSON object as header", shown_value(header));
    }
    std::vector<std::pair<const std::string*, const Json*>> entries;
    for (const auto& item : header.items()) {
        if (item.key() != "__metadata__") {
            entries.emplace_back(&item.key(), &item.value());
        }
    }
    std::stable_sort(entries.begin(), entries.end(),
                     [](const auto& one, const auto& other) { return begin_of(*one.second) < begin_of(*other.second); });
    std::byte* body = data + length_bytes + header_bytes;
    const std::uint64_t body_bytes = bytes - length_bytes - header_bytes;
    Tensors tensors;
    std::uint64_t end = 0;
    for (const auto& [name, described] : entries) {
        const std::string place = where + ": " + shown(*name);
        const Entry entry = checked(*described, place);
        if (entry.begin != end || entry.end > body_bytes) {
            const std::string expected = "data from byte " + std::to_string(end) + ", at most to byte " + std::to_string(body_bytes);
            throw bad(place, expected, std::to_string(entry.begin) + " to " + std::to_string(entry.end));
        }
        if (!can_be_held(entry.shape, bytes_of(entry.dtype))) {
            throw bad(place, "a shape that numpy can hold", shape_text(entry.shape));
        }
        tensors[*name] = {entry.dtype, entry.shape, body + entry.begin};
        end = entry.end;
    }
    if (end != body_bytes) {
        throw bad(where, std::to_string(end) + " bytes of data", std::to_string(body_bytes));
    }
    return tensors;
}

}  // namespace dexport
