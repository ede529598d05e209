#include <doctest/doctest.h>

#include <string>

#include "regular_expression.h"

using namespace dexport;

TEST_CASE("a match is found at a place or behind it") {
    const RegularExpression digits("[0-9]+", Syntax::oniguruma);
    const std::string text = "\xc3\xa4 12 3";
    CHECK(digits.find(text)->begin == 3);
    CHECK(digits.find(text)->end == 5);
    CHECK(digits.find(text, 5)->begin == 6);
    CHECK(!digits.find(text, text.size()));
}

TEST_CASE("the ends are those of the whole text in Perl's syntax, of lines in Oniguruma's") {
    CHECK(!RegularExpression("^b", Syntax::perl).find("a\nb"));
    CHECK(RegularExpression("^b", Syntax::oniguruma).find("a\nb")->begin == 2);
}

TEST_CASE("what is no pattern, or takes too many tries, is said") {
    CHECK_THROWS_WITH_AS(RegularExpression("(", Syntax::perl), "end pattern with unmatched parenthesis", ExpressionError);
    const RegularExpression slow("^(?:a|aa)+[bc]", Syntax::oniguruma);
    CHECK_THROWS_AS(static_cast<void>(slow.find(std::string(60, 'a') + "d")), ExpressionError);
}
