#include "sample_files.h"

#include <nlohmann/json.hpp>

#include "json.h"

namespace dexport {
namespace {

std::string little(std::uint64_t value, std::size_t bytes) {
    std::string text;
    for (std::size_t index = 0; index < bytes; ++index) {
        text += static_cast<char>(value >> (8 * index) & 255);
    }
    return text;
}

}  // namespace

std::string sample_archive(std::uint64_t method) {
    const std::size_t padding = 4096 - 31 - 4;
    const std::string sizes = little(0, 4) + little(5, 4) + little(5, 4);
    std::string text =
        "PK\3\4" + little(20, 2) + little(0, 2) + little(method, 2) + little(0, 4) + sizes + little(1, 2) + little(padding + 4, 2) + "a";
    text += little(0xD935, 2) + little(padding, 2) + std::string(padding, '\0') + "hello";
    const std::size_t start = text.size();
    text += "PK\1\2" + little(20, 2) + little(20, 2) + little(0, 2) + little(method, 2) + little(0, 4) + sizes + little(1, 2) +
            std::string(16, '\0') + "a";
    const std::size_t bytes = text.size() - start;
    return text + "PK\5\6" + little(0, 4) + little(1, 2) + little(1, 2) + little(bytes, 4) + little(start, 4) + little(0, 2);
}

std::string tensor_file(const std::string& header, const std::string& data) {
    return little(header.size(), 8) + header + data;
}

std::string sample_tensor_file() {
    return tensor_file(
        R"({"b": {"dtype": "U8", "shape": [2], "data_offsets": [4, 6]}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},)"
        R"( "__metadata__": {"x": "y"}, "e": {"dtype": "I8", "shape": [0], "data_offsets": [6, 6]}})",
        std::string("\0\0\x80\x3f", 4) + "\1\2");
}

std::string sample_tokenizer(const std::string& patch) {
    Json json = Json::parse(R"({
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": {"<pad>": 0, "a": 1, "red": 2, "circle": 3, "<unk>": 4, "</s>": 5}, "unk_token": "<unk>"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "BertProcessing", "cls": ["<pad>", 0], "sep": ["</s>", 5]},
        "truncation": {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 5}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_token": "<pad>"}
    })");
    json.merge_patch(Json::parse(patch));
    return json.dump();
}

}  // namespace dexport
