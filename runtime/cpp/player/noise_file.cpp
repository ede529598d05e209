#include "noise_file.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <regex>
#include <string_view>

#include "arguments.h"

namespace player {
namespace {

constexpr std::size_t before_header = 10;  // of format version 1.0: 6 bytes of magic, 2 of version, 2 of length

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
std::size_t append_values(const std::string& type, std::string_view bytes, std::vector<float>& values) {
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

}  // namespace

NoiseFile::NoiseFile(const std::string& path) {
    const std::string content = read_file(path);
    const bool numpy = content.size() > before_header && content.compare(0, 8, "\x93NUMPY\x01\0", 8) == 0;
    const std::size_t header_bytes =
        numpy ? static_cast<unsigned char>(content[8]) + std::size_t{256} * static_cast<unsigned char>(content[9]) : 0;
    if (!numpy || content.size() < before_header + header_bytes) {
        refuse(path, "another format");
    }
    const std::string header = content.substr(before_header, header_bytes);
    std::smatch type, shape;
    if (!std::regex_search(header, type, std::regex("'descr': '([^']*)'")) || header.find("'fortran_order': False") == std::string::npos ||
        !std::regex_search(header, shape, std::regex("'shape': \\(([0-9, ]*)\\)"))) {
        refuse(path, "an array that is not in row-major order");
    }
    const std::string sizes = shape[1];
    const std::regex number("[0-9]{1,9}");
    std::size_t elements = 1;
    for (auto size = std::sregex_iterator(sizes.begin(), sizes.end(), number); size != std::sregex_iterator(); ++size) {
        shape_.push_back(std::stoll(size->str()));
        elements *= static_cast<std::size_t>(shape_.back());
    }
    const std::string_view bytes = std::string_view(content).substr(before_header + header_bytes);
    const std::size_t element_bytes = append_values(type[1], bytes, values_);
    if (element_bytes == 0) {
        refuse(path, "elements of type " + type[1].str() + ", not <f4, <f8, <i4 or <i8");
    }
    if (shape_.size() > DEXPORT_MAX_AXES || values_.size() != elements || bytes.size() != elements * element_bytes) {
        refuse(path, std::to_string(bytes.size()) + " bytes for the shape (" + sizes + ")");
    }
}

dexport_tensor NoiseFile::tensor() const {
    dexport_tensor tensor{nullptr, DEXPORT_FLOAT32, static_cast<std::int32_t>(shape_.size()), {}, values_.data()};
    std::copy(shape_.begin(), shape_.end(), tensor.shape);
    return tensor;
}

}  // namespace player
