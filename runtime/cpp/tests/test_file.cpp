#include <doctest/doctest.h>

#include <string>
#include <system_error>

#include "file.h"
#include "sample_bundle.h"

using namespace dexport;

TEST_CASE("a file is read and mapped from any offset, and a mapping is private") {
    const Folder folder;
    std::string content(10000, 'a');
    content.replace(5000, 5, "hello");
    write_file(folder.path() / "x", content);
    const File file(folder.path() / "x");
    CHECK(file.size() == 10000);
    std::string read(5, ' ');
    CHECK(file.read(read.data(), 5, 5000) == 5);
    CHECK(read == "hello");
    CHECK(file.read(read.data(), 5, 9998) == 2);
    const Mapping mapping(file, 5000, 5);
    CHECK(std::string(reinterpret_cast<char*>(mapping.data()), mapping.size()) == "hello");
    mapping.data()[0] = 'J';
    CHECK(file.read(read.data(), 5, 5000) == 5);
    CHECK(read == "hello");
    mapping.forget_pages();
    CHECK(std::string(reinterpret_cast<char*>(mapping.data()), mapping.size()) == "hello");
    const Mapping empty(file, 0, 0);
    empty.forget_pages();
    CHECK(empty.data() == nullptr);
}

TEST_CASE("a file that is not there is an error of the system") {
    CHECK_THROWS_AS(File("/nowhere/x"), std::system_error);
}
