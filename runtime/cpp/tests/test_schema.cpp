#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <stdexcept>

#include "sample_bundle.h"
#include "schema.h"

using namespace dexport;

namespace {

std::string refusal(const char* schema, const char* document) {
    return refusal_of([&] { Schema(schema).check(Json::parse(document), "x.json"); });
}

const std::string end = "; get the bundle again or rebuild it";

}  // namespace

TEST_CASE("every keyword refuses what it is for, and says where") {
    CHECK(refusal(R"({"properties": {"a": {"type": "integer"}}})", R"({"a": 1.0})") ==
          "x.json: a: expected JSON of type integer, got 1.0" + end);
    CHECK(refusal(R"({"type": ["object", "null"]})", "3") == "x.json: expected JSON of type object or null, got 3" + end);
    CHECK(refusal(R"({"type": "integer"})", "true") == "x.json: expected JSON of type integer, got True" + end);
    CHECK(refusal(R"({"const": 1})", "2") == "x.json: expected 1, got 2" + end);
    CHECK(refusal(R"({"enum": ["a", "b"]})", "\"c\"") == "x.json: expected one of a, b, got 'c'" + end);
    CHECK(refusal(R"({"minimum": 1})", "0") == "x.json: expected a number from 1, got 0" + end);
    CHECK(refusal(R"({"maximum": 1})", "2") == "x.json: expected a number up to 1, got 2" + end);
    CHECK(refusal(R"({"maxLength": 2})", "\"\u00e9\u00e9\u00e9\"") == "x.json: expected at most 2 characters, got 'ééé'" + end);
    CHECK(refusal(R"({"minItems": 1})", "[]") == "x.json: expected at least 1 items, got a list of 0" + end);
    CHECK(refusal(R"({"maxItems": 1})", "[1, 2]") == "x.json: expected at most 1 items, got a list of 2" + end);
    CHECK(refusal(R"({"minProperties": 1})", "{}") == "x.json: expected at least 1 keys, got an object of 0" + end);
    CHECK(refusal(R"({"maxProperties": 0})", R"({"a": 1})") == "x.json: expected at most 0 keys, got an object of 1" + end);
    CHECK(refusal(R"({"uniqueItems": true})", "[1, 1]") == "x.json: expected uniqueItems True, got a list of 2" + end);
    CHECK(refusal(R"({"required": ["a", "b"]})", R"({"a": 1})") == "x.json: expected the key 'b', got none" + end);
    CHECK(refusal(R"({"properties": {"a": {}}, "additionalProperties": false})", R"({"b": 1})") ==
          "x.json: expected only the keys a, got the key 'b'" + end);
    CHECK(refusal(R"({"additionalProperties": {"const": 1}})", R"({"b": 2})") == "x.json: b: expected 1, got 2" + end);
    CHECK(refusal(R"({"propertyNames": {"maxLength": 1}})", R"({"bc": 2})") == "x.json: expected at most 1 characters, got 'bc'" + end);
    CHECK(refusal(R"({"items": {"const": 1}})", "[1, 2]") == "x.json: 1: expected 1, got 2" + end);
    CHECK(refusal(R"({"prefixItems": [{"const": 0}], "items": {"const": 1}})", "[0, 1, 2]") == "x.json: 2: expected 1, got 2" + end);
    CHECK(refusal(R"({"prefixItems": [{"const": 0}], "items": {"const": 1}})", "[1]") == "x.json: 0: expected 0, got 1" + end);
    CHECK(refusal(R"({"if": {"type": "string"}, "then": {"const": "a"}, "else": {"const": 1}})", "2") == "x.json: expected 1, got 2" + end);
    CHECK(refusal(R"({"if": {"type": "string"}, "then": {"const": "a"}})", "2").empty());
    CHECK(refusal(R"({"allOf": [{"minimum": 1}, {"maximum": 2}]})", "3") == "x.json: expected a number up to 2, got 3" + end);
    CHECK(refusal(R"({"description": "one", "oneOf": [{"const": 1}, {"minimum": 1}]})", "1") == "x.json: expected one, got 1" + end);
    CHECK(refusal(R"x({"$ref": "#/$defs/a", "$defs": {"a": {"description": "a", "pattern": "^a+$(?!\\n)"}}})x", R"("aa\n")") ==
          "x.json: expected a, got 'aa\\n'" + end);
    CHECK(refusal(R"({"pattern": "b"})", "\"abc\"").empty());
}

TEST_CASE("a pattern takes any text without recursion") {
    CHECK(Schema(R"({"$defs": {"a": {"pattern": "^[^\\n]*$"}}, "$ref": "#/$defs/a"})")
              .accepts(Json{{"pattern", "^[^\\n]*$"}}, Json(std::string(1 << 22, 'x'))));
}

TEST_CASE("a keyword that is not known is a mistake of the schema") {
    CHECK_THROWS_AS(Schema(R"({"multipleOf": 2})"), std::logic_error);
}
