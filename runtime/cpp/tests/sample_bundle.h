#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "json.h"

namespace dexport {

/// A folder that goes with its object.
class Folder {
public:
    Folder();
    ~Folder();
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;

    [[nodiscard]] const std::filesystem::path& path() const { return path_; }

private:
    std::filesystem::path path_;
};

void write_file(const std::filesystem::path& path, const std::string& content);

/// The text of the error that `body` throws, "" if it throws none.
[[nodiscard]] std::string refusal_of(const std::function<void()>& body);

/// The sampling program of the sample: three times sample = 0.5 sample + 0.25 denoiser(sample, label), then a decoder.
[[nodiscard]] Json sample_program();

/// Writes a bundle of two OpenVINO models that makes pictures of 4x4 pixels from a class label:
/// denoiser: x * label; decoder: clamp(32 x + 128) as uint8. `edit` changes the manifest before it is written.
std::filesystem::path write_sample_bundle(const std::filesystem::path& folder, const std::function<void(Json&)>& edit = {});

}  // namespace dexport
