// Reads files as the runtime does and prints, for each, "ok" or the error: how the Python tests compare the two readers.
// Usage: read_files archive|bundle|manifest|program|tensors FILE...; checked MANIFEST PROGRAM...
#include <cstdio>
#include <string>

#include "archive.h"
#include "bundle.h"
#include "error.h"
#include "file.h"
#include "program_check.h"
#include "tensor_file.h"

using namespace dexport;

namespace {

std::string content_of(const std::string& path) {
    const File file(path);
    std::string text(file.size(), '\0');
    text.resize(file.read(text.data(), text.size(), 0));
    return text;
}

void read(const std::string& kind, const std::string& path, const Manifest& manifest) {
    if (kind == "archive") {
        static_cast<void>(list_archive(path));
        return;
    }
    if (kind == "bundle") {
        const Bundle bundle(path);
        return;
    }
    std::string text = content_of(path);
    if (kind == "manifest") {
        static_cast<void>(manifest_from_json(text, path));
    } else if (kind == "tensors") {
        static_cast<void>(tensors_from_bytes(reinterpret_cast<std::byte*>(text.data()), text.size(), path));
    } else {
        const Program program = program_from_json(text, path);
        if (kind == "checked") {
            check_program(program, manifest.components);
        }
    }
}

}  // namespace

int main(int count, char** arguments) {
    const std::string kind = arguments[1];
    const bool checked = kind == "checked";
    const Manifest manifest = checked ? manifest_from_json(content_of(arguments[2]), arguments[2]) : Manifest();
    for (int index = checked ? 3 : 2; index < count; ++index) {
        std::string answer = "ok";
        try {
            read(kind, arguments[index], manifest);
        } catch (const Error& error) {
            answer = error.what();
        }
        std::puts(answer.c_str());
    }
}
