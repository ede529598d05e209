// Writes what the targets start from, each kind to its folder. Usage: write_seeds FOLDER
#include <filesystem>
#include <nlohmann/json.hpp>

#include "sample_bundle.h"
#include "sample_files.h"

using namespace dexport;

int main(int, char** arguments) {
    const std::filesystem::path seeds = arguments[1];
    const Folder folder;
    std::filesystem::create_directories(seeds / "manifest");
    const auto with_plugins = [](Json& manifest) {
        manifest["files"]["plugins/one.so"] = {{"sha256", std::string(64, '0')}, {"bytes", 1}};
        const Json files = Json::array({"plugins/one.so"});
        manifest["plugins"] = Json::array({{{"name", "one"}, {"files", files}, {"sm", 87}, {"tensorrt", "10.3.0"}},
                                           {{"name", "two"}, {"files", files}, {"sm", nullptr}, {"tensorrt", nullptr}}});
    };
    std::filesystem::copy_file(write_sample_bundle(folder.path(), with_plugins) / "manifest.json", seeds / "manifest" / "sample",
                               std::filesystem::copy_options::overwrite_existing);
    write_file(seeds / "program" / "sample", sample_program().dump());
    write_file(seeds / "archive" / "sample", sample_archive());
    write_file(seeds / "tensors" / "sample", sample_tensor_file());
    write_file(seeds / "tokenizer" / "words", sample_tokenizer());
    write_file(seeds / "tokenizer" / "unigram", sample_tokenizer(R"({"model": {"type": "Unigram", "unk_id": 0, "byte_fallback": true,
        "vocab": [["<unk>", 0.0], ["a", -1.5], [" red", -2.0], ["c", -3.0]]}, "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581",
        "prepend_scheme": "always", "split": true}, "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"},
        {"type": "Strip", "strip_left": true, "strip_right": true}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]}})"));
    write_file(seeds / "tokenizer" / "pairs", sample_tokenizer(R"({"model": {"type": "BPE", "vocab": {"r": 0, "e": 1, "d": 2, "re": 3,
        "red": 4, "<unk>": 5}, "merges": [["r", "e"], "re d"], "unk_token": "<unk>", "fuse_unk": true, "dropout": null,
        "continuing_subword_prefix": "", "end_of_word_suffix": "", "byte_fallback": false}, "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}, "added_tokens": [{"id": 6, "content": "<x>",
        "single_word": false, "lstrip": true, "rstrip": false, "normalized": false, "special": true}]})"));
    write_file(seeds / "tokenizer" / "pieces", sample_tokenizer(R"({"model": {"type": "WordPiece", "vocab": {"a": 0, "re": 1, "##d": 2,
        "[UNK]": 3}, "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
        "lowercase": true}, "pre_tokenizer": {"type": "BertPreTokenizer"}})"));
}
