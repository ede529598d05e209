#include <doctest/doctest.h>

#include <string>

#include "error.h"
#include "sample_files.h"
#include "text/tokens.h"

using namespace dexport;
using namespace dexport::text;

namespace {

std::string refusal(const std::string& json) {
    try {
        static_cast<void>(Tokenizer(json, "t.json"));
    } catch (const Error& error) {
        CHECK(error.code() == Code::user);
        return error.what();
    }
    return "";
}

}  // namespace

TEST_CASE("prompts become rows of ids and masks, and what is cut off is named") {
    const Tokens tokens = tokenize(Tokenizer(sample_tokenizer(), "t.json"), {"a red circle", "", "a red circle a blue"}, "t5");
    CHECK(tokens.length == 5);
    CHECK(tokens.ids == std::vector<std::int64_t>{0, 1, 2, 3, 5, 0, 5, 0, 0, 0, 0, 1, 2, 3, 5});
    CHECK(tokens.mask == std::vector<std::int64_t>{1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1});
    CHECK(tokens.warnings ==
          std::vector<std::string>{"t5 takes 5 tokens; 2 of the prompt do not fit and are left out: 'a red circle a blue'"});
}

TEST_CASE("rows of different lengths are refused") {
    const Tokenizer tokenizer(sample_tokenizer(R"({"padding": null})"), "t.json");
    CHECK(tokenize(tokenizer, {"a red"}, "t5").length == 4);
    CHECK_THROWS_WITH_AS(static_cast<void>(tokenize(tokenizer, {"a", "a red"}, "t5")),
                         "tokenizer t5: expected the same number of tokens for every prompt, got 3 and 4; rebuild the bundle", Error);
}

TEST_CASE("a prompt that is no text is refused") {
    const Tokenizer tokenizer(sample_tokenizer(), "t.json");
    for (const char* text : {"\xff", "a\xc3", "\xed\xa0\x80", "\xc0\x80"}) {
        CHECK_THROWS_AS(static_cast<void>(tokenizer.encode(text)), Error);
    }
    CHECK_THROWS_WITH(static_cast<void>(tokenizer.encode("a\xff")), R"(prompt: expected text in UTF-8, got 'a\\xff'; encode it in UTF-8)");
}

TEST_CASE("a word that nothing stands for is an error of the prompt") {
    const Tokenizer tokenizer(sample_tokenizer(R"({"model": {"unk_token": "?"}})"), "t.json");
    CHECK_THROWS_WITH(
        static_cast<void>(tokenizer.encode("a blue")),
        "t.json: expected tokens for every text, got an unknown word, and no token for those; change the prompt, or rebuild the bundle");
}

TEST_CASE("what this runtime cannot do is named") {
    const std::string start = "t.json: expected a tokenizer that this runtime can do, got ";
    const std::string end = "; give token ids instead of a prompt, or run the bundle with Python";
    CHECK(refusal(sample_tokenizer(R"({"normalizer": {"type": "Nmt"}})")) == start + "the normalizer Nmt" + end);
    CHECK(refusal(sample_tokenizer(R"({"pre_tokenizer": {"type": "UnicodeScripts"}})")) == start + "the pre-tokenizer UnicodeScripts" + end);
    CHECK(refusal(sample_tokenizer(R"({"model": {"type": "Other"}})")) == start + "the model Other" + end);
    CHECK(refusal(sample_tokenizer(R"({"post_processor": {"type": "Other"}})")) == start + "the post-processor Other" + end);
    CHECK(refusal(sample_tokenizer(R"({"model": {"type": "BPE", "merges": [], "dropout": 0.1}})")) ==
          start + "a BPE model with dropout" + end);
    CHECK(refusal(sample_tokenizer(R"({"truncation": {"strategy": "OnlySecond"}})")) == start + "the truncation OnlySecond" + end);
}

TEST_CASE("a file that is no tokenizer is refused, whatever is wrong with it") {
    for (const char* patch : {
             R"({"model": null})",
             R"({"model": {"vocab": {"a": -1}}})",
             R"({"model": {"vocab": {"a": 4294967296}}})",
             R"({"model": {"vocab": {"a": 1.5}}})",
             R"({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 1}})",
             R"({"model": {"type": "Unigram", "vocab": [["a"]], "unk_id": 0}})",
             R"({"model": {"type": "BPE", "merges": [["a", "x"]]}})",
             R"({"model": {"type": "BPE", "merges": ["a b c"]}})",
             R"({"model": {"type": "BPE", "merges": [["a"]]}})",
             R"({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}})",
             R"({"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}})",
             R"({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}})",
             R"({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}})",
             R"({"normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}})",
             R"({"normalizer": {"type": "Sequence"}})",
             R"({"pre_tokenizer": {"type": "Split", "pattern": {"String": "a"}, "behavior": "Other", "invert": false}})",
             R"({"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "other"}})",
             R"({"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}], "special_tokens": {}}})",
             R"({"truncation": {"max_length": 1}})",
             R"({"truncation": {"max_length": -1}})",
             R"({"padding": {"strategy": {"Fixed": 4000000000}}})",
             R"({"added_tokens": [{"content": "x"}]})",
             R"({"added_tokens": 1})",
         }) {
        CAPTURE(patch);
        CHECK(refusal(sample_tokenizer(patch)).rfind("t.json: expected a tokenizer.json, got ", 0) == 0);
    }
    CHECK(refusal("[]").rfind("t.json: expected a tokenizer.json, got ", 0) == 0);
    CHECK(refusal("{").rfind("t.json: expected well-formed JSON in UTF-8, got ", 0) == 0);
}

TEST_CASE("a charsmap that leads out of itself is an error of the file") {
    // A trie of one unit: label 0, an offset that every byte leaves.
    const std::string patch = R"({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAEAAA="}})";
    const Tokenizer tokenizer(sample_tokenizer(patch), "t.json");
    CHECK_THROWS_WITH(
        static_cast<void>(tokenizer.encode("a")),
        "t.json: expected tokens for every text, got a charsmap whose trie leads out of itself; change the prompt, or rebuild the bundle");
}
