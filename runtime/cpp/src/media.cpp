#include "media.h"

#include <png.h>

#include <algorithm>
#include <cctype>
#include <string>
#include <string_view>

#include "atomic_file.h"
#include "error.h"
#include "json.h"

namespace dexport {
namespace {

constexpr std::size_t channels = 3;

std::string suffix_of(const std::filesystem::path& path) {
    std::string suffix = path.extension().string();
    std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char letter) { return std::tolower(letter); });
    return suffix;
}

/// One picture [height, width, 3].
struct Picture {
    std::size_t height;
    std::size_t width;
    const std::byte* pixels;
};

std::vector<char> png_from(const Picture& picture) {
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    image.width = static_cast<png_uint_32>(picture.width);
    image.height = static_cast<png_uint_32>(picture.height);
    image.format = PNG_FORMAT_RGB;
    std::vector<char> encoded(PNG_IMAGE_PNG_SIZE_MAX(image));
    png_alloc_size_t bytes = encoded.size();
    if (png_image_write_to_memory(&image, encoded.data(), &bytes, 0, picture.pixels, 0, nullptr) == 0) {
        throw failure("PNG", "a picture that libpng can write", image.message, "report it");
    }
    encoded.resize(bytes);
    return encoded;
}

/// The head of a .npy file, version 1.0: numpy's description of the array, padded so that the numbers begin at a multiple of 64.
std::string npy_header(const Shape& shape) {
    std::string description = "{'descr': '|u1', 'fortran_order': False, 'shape': (";
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        description += (axis == 0 ? "" : ", ") + std::to_string(shape[axis]);
    }
    description += "), }";
    constexpr std::size_t before = 10;  // magic, version and length
    description.append(63 - (before + description.size()) % 64, ' ');
    description += '\n';
    const auto length = description.size();
    return std::string("\x93NUMPY\x01\0", 8) + static_cast<char>(length & 0xFF) + static_cast<char>(length >> 8) + description;
}

std::string_view bytes_from(const Tensor& tensor) {
    return {reinterpret_cast<const char*>(tensor.data), tensor.bytes()};
}

/// All pictures in order, whichever video they belong to.
std::vector<Picture> pictures_in(const Tensor& tensor) {
    const auto size = [&](std::size_t from_end) { return static_cast<std::size_t>(tensor.shape[tensor.shape.size() - from_end]); };
    std::vector<Picture> pictures;
    const std::size_t bytes = size(3) * size(2) * channels;
    for (std::size_t offset = 0; offset < tensor.bytes(); offset += bytes) {
        pictures.push_back({size(3), size(2), tensor.data + offset});
    }
    return pictures;
}

/// One file for each picture of `pictures_in`.
std::vector<std::filesystem::path> files_for(const Tensor& tensor, const std::filesystem::path& path) {
    std::vector<std::filesystem::path> files = numbered(path, static_cast<std::size_t>(tensor.shape[0]));
    if (tensor.shape.size() == 4) {
        return files;
    }
    std::vector<std::filesystem::path> frames;
    for (const std::filesystem::path& file : files) {
        const auto of_one = numbered(file, static_cast<std::size_t>(tensor.shape[1]));
        frames.insert(frames.end(), of_one.begin(), of_one.end());
    }
    return frames;
}

void check_pictures(const Tensor& tensor) {
    const bool axes = tensor.shape.size() == 4 || tensor.shape.size() == 5;
    if (tensor.dtype != Dtype::uint8 || !axes || tensor.shape.back() != channels || tensor.elements() == 0) {
        throw user_error("pictures", "uint8 [count, height, width, 3] or [count, frames, height, width, 3]",
                         kind_text(tensor.dtype, tensor.shape), "pass what a run gave");
    }
}

}  // namespace

void check_output(const std::filesystem::path& path, bool video) {
    const std::string where = "output " + path.string();
    const std::string suffix = suffix_of(path);
    if (suffix != ".png" && suffix != ".npy") {
        const std::filesystem::path stem = path.has_filename() ? path.stem() : "out";
        const std::string name = stem.string() + ".png";
        const std::string expected =
            std::string("a file name that ends in .png, .npy for ") + (video ? "the frames of a video" : "pictures");
        const std::string join = "; join its frames with: ffmpeg -i " + stem.string() + "-%0Nd.png, N the digits of a number";
        throw user_error(where, expected, repr(shown(path.extension().string())), "write to " + name + (video ? join : ""));
    }
    const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
    if (std::error_code ignored; !std::filesystem::is_directory(folder, ignored)) {
        throw user_error(where, "a folder that exists", "no folder " + folder.string(), "mkdir -p " + folder.string());
    }
}

std::vector<std::filesystem::path> save(const Tensor& pictures, const std::filesystem::path& path) {
    check_pictures(pictures);
    check_output(path, pictures.shape.size() == 5);
    if (suffix_of(path) == ".npy") {
        write_atomically(path, {npy_header(pictures.shape), bytes_from(pictures)});
        return {path};
    }
    const std::vector<std::filesystem::path> files = files_for(pictures, path);
    const std::vector<Picture> each = pictures_in(pictures);
    for (std::size_t index = 0; index < files.size(); ++index) {
        const std::vector<char> encoded = png_from(each[index]);
        write_atomically(files[index], {{encoded.data(), encoded.size()}});
    }
    return files;
}

std::vector<std::filesystem::path> numbered(const std::filesystem::path& path, std::size_t count) {
    if (count == 1) {
        return {path};
    }
    const std::size_t digits = std::to_string(count - 1).size();
    std::vector<std::filesystem::path> files;
    for (std::size_t index = 0; index < count; ++index) {
        const std::string number = std::to_string(index);
        std::filesystem::path file = path;
        file.replace_filename(path.stem().string() + "-" + std::string(digits - number.size(), '0') + number + path.extension().string());
        files.push_back(file);
    }
    return files;
}

}  // namespace dexport
