#include <doctest/doctest.h>

#include "sha256.h"

using namespace dexport;

TEST_CASE("the digest of FIPS 180-2, in one piece and in several") {
    Sha256 whole, parts;
    whole.update("abc", 3);
    parts.update("a", 1);
    parts.update("bc", 2);
    const char* expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    CHECK(whole.hexadecimal() == expected);
    CHECK(parts.hexadecimal() == expected);
    CHECK(Sha256().hexadecimal() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}
