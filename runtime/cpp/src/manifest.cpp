#include "manifest.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "error.h"
#include "schema.h"

namespace dexport {
namespace {


const Schema& schema() {
    static const Schema instance(
#include "manifest_schema.inc"
    );
    return instance;
}

/// Paths are ASCII by the schema.
std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(),
                   [](char letter) { return letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter - 'A' + 'a') : letter; });
    return text;
}

/// Refuses paths that are one and the same where case does not count, and files that are also folders.
void check_collisions(const Json& files, const std::string& where) {
    std::set<std::string> paths = {manifest_name};
    for (const auto& item : files.items()) {
        paths.insert(item.key());
    }
    std::unordered_map<std::string, std::string> spelling;
    for (const std::string& path : paths) {
        for (std::size_t end = path.find('/'); true; end = path.find('/', end + 1)) {
            const std::string prefix = path.substr(0, end);
            const std::string kind = end == std::string::npos ? prefix : prefix + "/";
            const std::string& other = spelling.emplace(lower(prefix), kind).first->second;
            if (other != kind) {
                const std::string got = "'" + shown(other) + "' and '" + shown(kind) + "'";
                throw user_error(where, "file names that differ by more than case", got, get_again);
            }
            if (end == std::string::npos) {
                break;
            }
        }
    }
}

/// Every path that is named is a file of the bundle, and the parts of a variant agree with each other.
class References {
public:
    References(const Json& document, std::string where) : document_(document), where_(std::move(where)) {
        for (const auto& item : document.at("files").items()) {
            files_.insert(item.key());
        }
    }

    void check() {
        name("report", document_.at("report"));
        for (const auto& component : document_.at("components").items()) {
            std::size_t index = 0;
            for (const Json& variant : component.value().at("variants")) {
                check_variant("components." + component.key() + ".variants." + std::to_string(index++), variant);
            }
        }
        check_plugins();
        std::size_t index = 0;
        for (const Json& program : document_.at("programs")) {
            const std::string place = "programs." + std::to_string(index++);
            name(place, program.at("file"));
            name(place, program.at("tables"));
        }
        index = 0;
        for (const Json& golden : document_.at("golden")) {
            check_golden("golden." + std::to_string(index++), golden);
        }
        index = 0;
        for (const Json& text : document_.at("text")) {
            name("text." + std::to_string(index++), text.at("tokenizer"));
        }
        for (const auto& [place, path] : named_) {
            if (files_.count(path) == 0) {
                refuse(place, repr(path) + " listed under files", std::to_string(files_.size()) + " other files");
            }
        }
    }

private:
    void name(const std::string& place, const Json& path) {
        if (!path.is_null()) {
            named_.emplace_back(place, path.get<std::string>());
        }
    }

    void check_variant(const std::string& place, const Json& variant) {
        const Json &files = variant.at("files"), &artifact = variant.at("artifact");
        for (const Json& path : files) {
            name(place, path);
        }
        if (std::find(files.begin(), files.end(), artifact) == files.end()) {
            refuse(place, "the artifact " + repr(artifact.get<std::string>()) + " among its files",
                   std::to_string(files.size()) + " other files");
        }
        const auto format = variant.at("format").get<std::string>();
        if (!variant.at("native").get<bool>() && (format == "tensorrt" || format == "tensorrt-rtx")) {
            refuse(place, "native true for the format " + format, "native false");
        }
    }

    void check_plugins() {
        std::size_t index = 0;
        for (const Json& plugin : document_.value("plugins", Json::array())) {
            const std::string place = "plugins." + std::to_string(index++);
            const Json &files = plugin.at("files"), &sm = plugin.at("sm");
            for (const Json& path : files) {
                name(place, path);
            }
            if (sm.is_null() != plugin.at("tensorrt").is_null() || (!sm.is_null() && files.size() != 1)) {
                refuse(place, "sources alone, or one library with its sm and tensorrt", std::to_string(files.size()) + " files");
            }
        }
    }

    void check_golden(const std::string& place, const Json& golden) {
        name(place, golden.at("inputs"));
        name(place, golden.at("outputs"));
        const auto component = golden.at("component").get<std::string>();
        if (component != "pipeline" && !document_.at("components").contains(component)) {
            refuse(place, "the name of a component or 'pipeline'", repr(component));
        }
    }

    void refuse(const std::string& place, const std::string& expected, const std::string& got) const {
        throw user_error(where_ + ": " + place, expected, got, get_again);
    }

    const Json& document_;
    std::string where_;
    std::set<std::string> files_;
    std::vector<std::pair<std::string, std::string>> named_;  // place, path
};

template <typename Value>
std::optional<Value> optional(const Json& value) {
    return value.is_null() ? std::nullopt : std::optional<Value>(value.get<Value>());
}

Size size_from(const Json& value) {
    return {value[0].get<std::int64_t>(), value[1].get<std::int64_t>()};
}

std::map<std::string, Port> ports_from(const Json& entries) {
    std::map<std::string, Port> ports;
    for (const auto& item : entries.items()) {
        Port& port = ports[item.key()];
        port.dtype = item.value().at("dtype").get<std::string>();
        for (const Json& size : item.value().at("shape")) {
            if (size.is_string()) {
                port.shape.emplace_back(size.get<std::string>());
            } else {
                port.shape.emplace_back(size.get<std::int64_t>());
            }
        }
    }
    return ports;
}

/// The GPUs that `kernels.accelerators` names as "sm87"; an engine for others is refused before it is loaded.
std::vector<int> sms_from(const Json& kernels) {
    std::vector<int> sms;
    if (!kernels.is_object() || !kernels.contains("accelerators") || !kernels.at("accelerators").is_array()) {
        return sms;
    }
    for (const Json& accelerator : kernels.at("accelerators")) {
        const std::string name = accelerator.is_string() ? accelerator.get<std::string>() : "";
        const bool is_sm = name.size() > 2 && name.size() <= 6 && name.compare(0, 2, "sm") == 0 &&
                           name.find_first_not_of("0123456789", 2) == std::string::npos;
        if (is_sm) {
            sms.push_back(std::stoi(name.substr(2)));
        }
    }
    return sms;
}

Component component_from(const Json& entry) {
    Component component = {ports_from(entry.at("inputs")), ports_from(entry.at("outputs")), {}, entry.at("precision").get<std::string>()};
    for (const Json& variant : entry.at("variants")) {
        const Json& size = variant.at("size");
        component.variants.push_back({size.is_null() ? std::nullopt : std::optional(size_from(size)),
                                      variant.at("artifact").get<std::string>(), variant.at("format").get<std::string>(),
                                      variant.at("files").get<std::vector<std::string>>(), variant.at("native").get<bool>(),
                                      sms_from(variant.at("kernels"))});
    }
    return component;
}

Manifest manifest_from(const Json& document) {
    Manifest manifest;
    manifest.dexport = document.at("dexport").get<std::string>();
    manifest.model = document.at("model").at("name").get<std::string>();
    manifest.target = document.at("target").get<std::string>();
    manifest.precision = document.at("precision").get<std::string>();
    for (const auto& item : document.at("components").items()) {
        manifest.components.emplace_back(item.key(), component_from(item.value()));
    }
    for (const Json& text : document.at("text")) {
        const Json& outputs = text.at("outputs");
        manifest.texts.push_back({text.at("name").get<std::string>(), text.at("tokenizer").get<std::string>(),
                                  text.at("length").get<std::int64_t>(), outputs.at("ids").get<std::string>(),
                                  optional<std::string>(outputs.at("mask"))});
    }
    for (const Json& request : document.at("requests")) {
        manifest.requests.push_back({request.at("buffer").get<std::string>(), request.at("source").get<std::string>(),
                                     optional<std::string>(request.at("parameter")), request.at("negative").get<double>()});
    }
    manifest.guidance_kind = document.at("guidance").at("kind").get<std::string>();
    manifest.guidance_default = document.at("guidance").at("default").get<double>();
    manifest.frames_per_second = optional<std::int64_t>(document.at("frames_per_second"));
    for (const Json& size : document.at("sizes")) {
        manifest.sizes.push_back(size_from(size));
    }
    for (const Json& program : document.at("programs")) {
        manifest.programs.push_back({program.at("file").get<std::string>(), optional<std::string>(program.at("tables")),
                                     program.at("steps").get<std::int64_t>(), size_from(program.at("size")),
                                     program.at("guided").get<bool>()});
    }
    for (const Json& plugin : document.value("plugins", Json::array())) {
        manifest.plugins.push_back({plugin.at("name").get<std::string>(), plugin.at("files").get<std::vector<std::string>>(),
                                    optional<int>(plugin.at("sm")), optional<std::string>(plugin.at("tensorrt")).value_or("")});
    }
    for (const auto& item : document.at("files").items()) {
        const Json& file = item.value();
        manifest.files.emplace_back(item.key(), FileEntry{file.at("sha256").get<std::string>(), file.at("bytes").get<std::uint64_t>()});
    }
    return manifest;
}

}  // namespace

std::string size_text(const Size& size) {
    return std::to_string(size.first) + "x" + std::to_string(size.second);
}

const Component* Manifest::component(std::string_view name) const {
    const auto found = std::find_if(components.begin(), components.end(), [&](const auto& item) { return item.first == name; });
    return found == components.end() ? nullptr : &found->second;
}

std::set<std::string> Manifest::native_files() const {
    constexpr const char* suffixes[] = {".so", ".dll", ".dylib", ".plan", ".engine", ".cubin", ".ptx", ".cu"};
    std::set<std::string> native;
    for (const auto& item : components) {
        for (const Variant& variant : item.second.variants) {
            if (variant.native) {
                native.insert(variant.files.begin(), variant.files.end());
            }
        }
    }
    for (const Plugin& plugin : plugins) {
        native.insert(plugin.files.begin(), plugin.files.end());
    }
    for (const auto& item : files) {
        const std::string path = lower(item.first);
        if (std::any_of(std::begin(suffixes), std::end(suffixes), [&](std::string_view suffix) {
                return path.size() >= suffix.size() && path.compare(path.size() - suffix.size(), suffix.size(), suffix) == 0;
            })) {
            native.insert(item.first);
        }
    }
    return native;
}

const FileEntry* Manifest::file(std::string_view path) const {
    const auto found = std::find_if(files.begin(), files.end(), [&](const auto& item) { return item.first == path; });
    return found == files.end() ? nullptr : &found->second;
}

Manifest manifest_from_json(std::string_view text, const std::string& where) {
    const Json document = parse_json(text, where, max_manifest_bytes);
    check_version(document, "bundle", bundle_schema, where);
    schema().check(document, where);
    check_collisions(document.at("files"), where);
    References(document, where).check();
    return manifest_from(document);
}

void check_path(const std::string& path, const std::string& where) {
    const Json& rule = schema().part("#/$defs/path");
    if (!schema().accepts(rule, Json(path))) {
        throw user_error(where, rule.at("description").get<std::string>(), "'" + shown(path) + "'", get_again);
    }
}

}  // namespace dexport
