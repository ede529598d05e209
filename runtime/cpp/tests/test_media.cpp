#include <doctest/doctest.h>
#include <png.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <string>

#include "error.h"
#include "media.h"

using namespace dexport;

namespace {

namespace fs = std::filesystem;

/// A folder that goes with the test.
class Folder {
public:
    Folder() {
        std::string name = (fs::temp_directory_path() / "dexport-XXXXXX").string();
        REQUIRE(::mkdtemp(name.data()) != nullptr);
        path_ = name;
    }
    ~Folder() { fs::remove_all(path_); }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;

    [[nodiscard]] fs::path operator/(const char* name) const { return path_ / name; }
    [[nodiscard]] std::size_t files() const {
        return static_cast<std::size_t>(std::distance(fs::directory_iterator(path_), fs::directory_iterator()));
    }

private:
    fs::path path_;
};

struct Pixels {
    explicit Pixels(Shape shape) : values(elements_of(shape)), tensor{Dtype::uint8, std::move(shape), nullptr} {
        std::iota(reinterpret_cast<unsigned char*>(values.data()), reinterpret_cast<unsigned char*>(values.data() + values.size()), 7);
        tensor.data = values.data();
    }
    std::vector<std::byte> values;
    Tensor tensor;
};

std::vector<std::byte> read_png(const fs::path& file) {
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    REQUIRE(png_image_begin_read_from_file(&image, file.c_str()) != 0);
    CHECK(image.format == PNG_FORMAT_RGB);
    image.format = PNG_FORMAT_RGB;
    std::vector<std::byte> pixels(PNG_IMAGE_SIZE(image));
    REQUIRE(png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr) != 0);
    return pixels;
}

std::string read_file(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<std::string> names(const std::vector<fs::path>& files) {
    std::vector<std::string> result;
    for (const fs::path& file : files) {
        result.push_back(file.filename().string());
    }
    return result;
}

}  // namespace

TEST_CASE("one PNG has the pixels, and nothing else is left in the folder") {
    const Folder folder;
    const Pixels pixels({1, 5, 7, 3});
    CHECK(save(pixels.tensor, folder / "out.png") == std::vector<fs::path>{folder / "out.png"});
    CHECK(read_png(folder / "out.png") == pixels.values);
    CHECK(folder.files() == 1);
}

TEST_CASE("several pictures, and frames, are numbered") {
    const Folder folder;
    const Pixels pictures({2, 4, 4, 3});
    CHECK(names(save(pictures.tensor, folder / "out.png")) == std::vector<std::string>{"out-0.png", "out-1.png"});
    CHECK(read_png(folder / "out-1.png") == std::vector<std::byte>(pictures.values.begin() + 48, pictures.values.end()));
    const Pixels videos({2, 11, 4, 4, 3});
    const auto frames = names(save(videos.tensor, folder / "v.PNG"));
    CHECK(frames.size() == 22);
    CHECK(frames[10] == "v-0-10.PNG");
    CHECK(frames[11] == "v-1-00.PNG");
    CHECK(read_png(folder / "v-1-00.PNG") == std::vector<std::byte>(videos.values.begin() + 11 * 48, videos.values.begin() + 12 * 48));
    CHECK(names(save(Pixels({1, 2, 4, 4, 3}).tensor, folder / "w.png")) == std::vector<std::string>{"w-0.png", "w-1.png"});
    CHECK(names(save(Pixels({1, 1, 4, 4, 3}).tensor, folder / "x.png")) == std::vector<std::string>{"x.png"});
}

TEST_CASE("a .npy holds all of them") {
    const Folder folder;
    const Pixels pixels({2, 5, 7, 3});
    static_cast<void>(save(pixels.tensor, folder / "out.npy"));
    const std::string content = read_file(folder / "out.npy");
    REQUIRE(content.size() == 128 + pixels.values.size());
    CHECK(content.substr(0, 8) == std::string("\x93NUMPY\x01\0", 8));
    CHECK(content.substr(10, 62) == "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 5, 7, 3)");
    CHECK(content[127] == '\n');
    CHECK(content.substr(128) == std::string(reinterpret_cast<const char*>(pixels.values.data()), pixels.values.size()));
}

TEST_CASE("names that cannot be written to are refused before the work") {
    const Folder folder;
    const auto refusal = [](const fs::path& path, bool video) {
        try {
            check_output(path, video);
        } catch (const Error& error) {
            return std::string(error.what());
        }
        return std::string();
    };
    CHECK(refusal(folder / "out.png", true).empty());
    CHECK(refusal("out.npy", false).empty());
    CHECK(refusal("out.jpg", false) ==
          "output out.jpg: expected a file name that ends in .png, .npy for pictures, got '.jpg'; write to out.png");
    CHECK(refusal("a/", false) == "output a/: expected a file name that ends in .png, .npy for pictures, got ''; write to out.png");
    CHECK(refusal("out.mp4", true) ==
          "output out.mp4: expected a file name that ends in .png, .npy for the frames of a video, got '.mp4'; "
          "write to out.png; join its frames with: ffmpeg -i out-%0Nd.png, N the digits of a number");
    CHECK(refusal("nowhere/out.png", false) ==
          "output nowhere/out.png: expected a folder that exists, got no folder nowhere; mkdir -p nowhere");
}

TEST_CASE("what cannot be written leaves nothing behind") {
    const Folder folder;
    fs::create_directory(folder / "out.png");
    CHECK_THROWS_WITH_AS(static_cast<void>(save(Pixels({1, 4, 4, 3}).tensor, folder / "out.png")),
                         doctest::Contains("expected a file that can be written, got Is a directory; check permissions"), Error);
    CHECK(folder.files() == 1);
    CHECK_THROWS_AS(static_cast<void>(save(Pixels({4, 4, 3}).tensor, folder / "x.png")), Error);
    CHECK_THROWS_AS(static_cast<void>(save(Pixels({1, 4, 4, 4}).tensor, folder / "x.png")), Error);
}
