#include <doctest/doctest.h>

#include <map>
#include <string>
#include <vector>

#include "error.h"

using namespace dexport;

TEST_CASE("an error is one line that says where, what was expected, what came and what to do") {
    const Error error = user_error("a.dxb", "a bundle", "nothing there", "check the path");
    CHECK(std::string(error.what()) == "a.dxb: expected a bundle, got nothing there; check the path");
    CHECK(error.code() == Code::user);
    CHECK(failure("a", "b", "c", "d").code() == Code::failure);
}

TEST_CASE("the reason of another library is its last line") {
    CHECK(reason_of(std::runtime_error("a.cpp:7\nno memory\n \n")) == "no memory");
    CHECK(reason_of(std::runtime_error(" \n")) == "an error without a message");
}

TEST_CASE("lists of names are sorted and not too long") {
    CHECK(names_text(std::vector<std::string>{"b", "a"}) == "a, b");
    CHECK(names_text(std::map<std::string, int>{{"a", 1}}) == "a");
    CHECK(names_text(std::vector<std::string>{}) == "(none)");
    CHECK(names_text(std::vector<std::string>(21, "a")).substr(57) == "a, ...");
}
