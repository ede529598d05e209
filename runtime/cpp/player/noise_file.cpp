#include "noise_file.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <optional>
#include <string_view>

#include "arguments.h"

namespace player {
namespace {

constexpr std::size_t before_header = 10;  // of format version 1.0: 6 bytes of magic, 2 of version, 2 of length
constexpr std::size_t max_header_bytes = 4096;  // numpy writes 118 for an array of numbers

[[noreturn]] void refuse(const std::string& path, const std::string& got) {
    throw UserError("--noise " + path + ": expected a .npy file with numbers, got " + got + "; write it with numpy.save");
}

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        refuse(path, "no such file");
    }
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

template <class Number>
void convert(std::string_view bytes, std::vector<float>& values) {
    for (std::size_t at = 0; at + sizeof(Number) <= bytes.size(); at += sizeof(Number)) {
        Number value{};
        std::memcpy(&value, bytes.data() + at, sizeof value);
        values.push_back(static_cast<float>(value));
    }
}

/// Bytes of one element, or 0 for a type that is not read.
std::size_t append_values(std::string_view type, std::string_view bytes, std::vector<float>& values) {
    if (type == "<f4") {
        convert<float>(bytes, values);
        return sizeof(float);
    }
    if (type == "<f8") {
        convert<double>(bytes, values);
        return sizeof(double);
    }
    if (type == "<i4") {
        convert<std::int32_t>(bytes, values);
        return sizeof(std::int32_t);
    }
    if (type == "<i8") {
        convert<std::int64_t>(bytes, values);
        return sizeof(std::int64_t);
    }
    return 0;
}

/// What stands in a header between a key with its opening and the next closing character.
std::optional<std::string_view> value_in(std::string_view header, std::string_view opening, char closing) {
    const std::size_t at = header.find(opening);
    if (at == std::string_view::npos) {
        return std::nullopt;
    }
    const std::string_view rest = header.substr(at + opening.size());
    const std::size_t end = rest.find(closing);
    return end == std::string_view::npos ? std::nullopt : std::optional(rest.substr(0, end));
}

/// Sizes from "1, 4, 8, 8" or "4,"; none if it is something else.
std::optional<std::vector<std::int64_t>> sizes_from(std::string_view text) {
    std::vector<std::int64_t> sizes;
    const char *at = text.data(), *end = at + text.size();
    while (at != end) {
        std::uint32_t size = 0;
        const auto [next, problem] = std::from_chars(at, end, size);
        if (problem != std::errc()) {
            return std::nullopt;
        }
        sizes.push_back(size);
        at = std::find_if(next, end, [](char each) { return each != ',' && each != ' '; });
    }
    return sizes;
}

/// Elements of an array of that shape, or a number that no file has where it does not fit.
std::size_t elements_of(const std::vector<std::int64_t>& shape) {
    std::size_t elements = 1;
    for (const std::int64_t size : shape) {
        if (__builtin_mul_overflow(elements, static_cast<std::size_t>(size), &elements)) {
            return std::numeric_limits<std::size_t>::max();
        }
    }
    return elements;
}

}  // namespace

NoiseFile::NoiseFile(const std::string& path) {
    const std::string content = read_file(path);
    const bool numpy = content.size() > before_header && content.compare(0, 8, "\x93NUMPY\x01\0", 8) == 0;
    const std::size_t header_bytes =
        numpy ? static_cast<unsigned char>(content[8]) + std::size_t{256} * static_cast<unsigned char>(content[9]) : 0;
    if (!numpy || content.size() < before_header + header_bytes || header_bytes > max_header_bytes) {
        refuse(path, "another format");
    }
    const std::string_view header = std::string_view(content).substr(before_header, header_bytes);
    const auto type = value_in(header, "'descr': '", '\''), sizes = value_in(header, "'shape': (", ')');
    const auto shape = sizes_from(sizes.value_or("?"));
    if (!type || !shape || header.find("'fortran_order': False") == std::string_view::npos) {
        refuse(path, "an array that is not in row-major order");
    }
    shape_ = *shape;
    const std::string_view bytes = std::string_view(content).substr(before_header + header_bytes);
    const std::size_t elements = elements_of(shape_), element_bytes = append_values(*type, bytes, values_);
    if (element_bytes == 0) {
        refuse(path, "elements of type " + std::string(*type) + ", not <f4, <f8, <i4 or <i8");
    }
    if (shape_.size() > DEXPORT_MAX_AXES || values_.size() != elements || bytes.size() != elements * element_bytes) {
        refuse(path, std::to_string(bytes.size()) + " bytes for the shape (" + std::string(*sizes) + ")");
    }
}

dexport_tensor NoiseFile::tensor() const {
    dexport_tensor tensor{nullptr, DEXPORT_FLOAT32, static_cast<std::int32_t>(shape_.size()), {}, values_.data()};
    std::copy(shape_.begin(), shape_.end(), tensor.shape);
    return tensor;
}

}  // namespace player
