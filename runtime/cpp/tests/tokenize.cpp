// Tokenizes texts for tests in Python: `tokenize tokenizer.json`.
//
// In: the bytes of a text as a decimal number, a line feed, the text; again and again. Out: one line of JSON for each.

#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "error.h"
#include "text/tokenizer.h"

int main(int count, char** arguments) {
    using dexport::Json;
    if (count != 2) {
        std::cerr << "usage: tokenize tokenizer.json\n";
        return 2;
    }
    try {
        std::ifstream file(arguments[1], std::ios::binary);
        const std::string json((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        const dexport::text::Tokenizer tokenizer(json, "tokenizer.json");
        std::cout << Json{{"ready", true}} << std::endl;
        for (std::size_t bytes = 0; std::cin >> bytes;) {
            std::cin.get();
            std::string text(bytes, '\0');
            std::cin.read(text.data(), static_cast<std::streamsize>(bytes));
            try {
                const dexport::text::Encoding encoding = tokenizer.encode(text);
                std::cout << Json{{"ids", encoding.ids}, {"mask", encoding.mask}, {"left_out", encoding.left_out}} << std::endl;
            } catch (const dexport::Error& error) {
                std::cout << Json{{"error", error.what()}} << std::endl;
            }
        }
    } catch (const dexport::Error& error) {
        std::cout << Json{{"error", error.what()}} << std::endl;
    }
    return 0;
}
