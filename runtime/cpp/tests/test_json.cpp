#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "error.h"
#include "json.h"

using namespace dexport;

namespace {

std::string refusal(const std::string& text, std::size_t max_bytes = 1 << 20) {
    try {
        static_cast<void>(parse_json(text, "x.json", max_bytes));
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

std::string nested(std::size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
}

}  // namespace

TEST_CASE("a document comes back with its keys in order") {
    const Json document = parse_json(R"({"b": [1, -2, 2.5, true, null], "a": {"c": "\u00e9"}})", "x.json", 100);
    CHECK(document.dump() == R"({"b":[1,-2,2.5,true,null],"a":{"c":"é"}})");
    CHECK(document["b"][0].is_number_integer());
}

TEST_CASE("what Python refuses is refused in the same words") {
    CHECK(refusal("[1]", 2) == "x.json: expected at most 2 bytes of JSON, got 3 bytes; get the bundle again or rebuild it");
    const std::string start = "x.json: expected well-formed JSON in UTF-8, got ", end = "; get the bundle again or rebuild it";
    CHECK(refusal(R"({"a": 1, "b": {"a": 2}, "a": 3})") == start + "the key 'a' twice in one object" + end);
    CHECK(refusal("[1e999]") == start + "the number 1e999, which does not fit a float" + end);
    CHECK(refusal("123456789012345678901") == start + "an integer of 21 digits" + end);
    CHECK(refusal(nested(33)) == start + "nesting deeper than 32" + end);
    CHECK(refusal(nested(32)).empty());
}

TEST_CASE("what is no JSON is refused") {
    for (const char* text :
         {"", "{", "[1,]", "NaN", "[Infinity]", "{\"a\" 1}", "[1] 2", "\xEF\xBB\xBF[1]", "\"\xff\"", "\"\\ud800\"", "\"a\nb\""}) {
        CAPTURE(text);
        CHECK(refusal(text).rfind("x.json: expected well-formed JSON in UTF-8, got ", 0) == 0);
    }
}

TEST_CASE("nothing may follow the document, behind a zero byte either") {
    CHECK(refusal(std::string("[1]\0x", 5)) ==
          "x.json: expected well-formed JSON in UTF-8, got a zero byte; get the bundle again or rebuild it");
}

TEST_CASE("an object of many keys takes time linear in their number") {
    std::string text = "{";
    for (int index = 0; index < 200000; ++index) {
        text += "\"" + std::to_string(index) + "\": 0, ";
    }
    CHECK(parse_json(text + "\"x\": 0}", "x.json", 1 << 24).size() == 200001);
}

TEST_CASE("deep nesting overflows no stack") {
    CHECK(!refusal(std::string(1 << 20, '[')).empty());
}

TEST_CASE("a stranger's value is shown in one short printable line") {
    CHECK(shown("a\x1b[31m\n") == R"(a\x1b[31m\n)");
    CHECK(shown(std::string(1000, 'x')) == std::string(50, 'x') + "..." + std::string(50, 'x'));
    CHECK(shown("é\u2028\xff") == "é\\u2028\\xff");
    CHECK(shown_value(Json::parse("[1, 2]")) == "a list of 2");
    CHECK(shown_value(Json::parse("{\"a\": 1}")) == "an object of 1");
    CHECK(shown_value(Json()) == "None");
    CHECK(shown_value(Json(true)) == "True");
    CHECK(shown_value(Json(1.5)) == "1.5");
}

TEST_CASE("text is quoted as Python's repr does") {
    CHECK(repr("a") == "'a'");
    CHECK(repr("it's") == "\"it's\"");
    CHECK(repr("\"it's\"\n\\") == "'\"it\\'s\"\\n\\\\'");
}
