#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "json.h"

namespace dexport {

inline constexpr int bundle_schema = 1;
inline constexpr const char* manifest_name = "manifest.json";
inline constexpr std::size_t max_manifest_bytes = 4 << 20;

using Size = std::pair<std::int64_t, std::int64_t>;  ///< height, width in pixels

/// "512x768".
[[nodiscard]] std::string size_text(const Size& size);

/// One input or output of a component; a dimension is a number or a symbol such as "batch".
struct Port {
    std::string dtype;
    std::vector<std::variant<std::int64_t, std::string>> shape;
};

/// One compiled form of a component, for `size` or for all sizes; a backend loads `artifact` first, one of `files`.
struct Variant {
    std::optional<Size> size;
    std::string artifact;
    std::string format;
    std::vector<std::string> files;
    bool native = false;   ///< machine code is inside, which only runs when the user trusts it
    std::vector<int> sms;  ///< compute capabilities times ten that it was built for; empty where the manifest names none
};

/// One network of the pipeline.
struct Component {
    std::map<std::string, Port> inputs;
    std::map<std::string, Port> outputs;
    std::vector<Variant> variants;
    std::string precision;  ///< "fp32", "fp16" or "bf16"
};

/// An operation of dexport's own that engines need TensorRT to have: one library, or, in a kit, the sources of one.
struct Plugin {
    std::string name;
    std::vector<std::string> files;
    std::optional<int> sm;  ///< compute capability times ten that the library is for; none in a kit
    std::string tensorrt;   ///< version that it was compiled for; empty in a kit
};

/// One sampling program and the request it answers; `guided` ones carry an unconditional and a conditional half.
struct ProgramEntry {
    std::string file;
    std::optional<std::string> tables;
    std::int64_t steps;
    Size size;
    bool guided;
};

/// What a file of the bundle must be.
struct FileEntry {
    std::string sha256;
    std::uint64_t bytes;
};

/// A buffer that the request fills beside token ids, one value per row.
///
/// `source` "class": the class label, `negative` in unconditional rows; "parameter": the value of that request parameter;
/// "given": 1 where the user gave a prompt for the row, 0 where the default stands in.
struct RequestBuffer {
    std::string buffer;
    std::string source;
    std::optional<std::string> parameter;
    double negative;
};

/// One prompt that the request gives: how it becomes token ids, and the buffers for them and for their mask.
struct TextEntry {
    std::string name;
    std::string tokenizer;  ///< path of tokenizer.json
    std::int64_t length;
    std::string ids;
    std::optional<std::string> mask;
};

/// What the runtime needs of `manifest.json`; everything in it has been checked, also what is left out here.
struct Manifest {
    std::string dexport;
    std::string model;
    std::string target;
    std::string precision;
    std::vector<std::pair<std::string, Component>> components;  ///< in the manifest's order
    std::vector<TextEntry> texts;
    std::vector<RequestBuffer> requests;
    std::string guidance_kind;  ///< "classifier-free" (off at a scale of at most 1), "embedded" or "none"
    double guidance_default;
    std::optional<std::int64_t> frames_per_second;
    std::vector<Size> sizes;
    std::vector<ProgramEntry> programs;
    std::vector<Plugin> plugins;
    std::vector<std::pair<std::string, FileEntry>> files;  ///< in the manifest's order

    /// Null if there is none of that name.
    [[nodiscard]] const Component* component(std::string_view name) const;

    /// Paths that hold machine code, by what they are rather than by what the manifest says of them alone.
    [[nodiscard]] std::set<std::string> native_files() const;

    /// Null if no file of that path is listed.
    [[nodiscard]] const FileEntry* file(std::string_view path) const;
};

/// Reads a manifest from anywhere; after it every path is a plain relative one and listed in `files`, and no two can become one.
/// Throws a user error: not JSON, not this schema, a newer schema, or paths and names that do not fit together.
[[nodiscard]] Manifest manifest_from_json(std::string_view text, const std::string& where);

/// Throws a user error unless `path` is a plain relative path by the schema's rule.
void check_path(const std::string& path, const std::string& where);

}  // namespace dexport
