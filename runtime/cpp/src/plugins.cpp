#include "plugins.h"

#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>

#include "atomic_file.h"
#include "error.h"

namespace dexport {
namespace {

namespace fs = std::filesystem;

constexpr const char* rebuild = "finalize the kit on this machine";

/// A folder that only this user can enter; it goes with everything in it.
class PrivateFolder {
public:
    PrivateFolder() {
        std::string pattern = (fs::temp_directory_path() / "dexport-XXXXXX").string();
        if (::mkdtemp(pattern.data()) == nullptr) {
            throw user_error(pattern, "a folder that can be made", "none", "check permissions, or set TMPDIR to another folder");
        }
        path_ = pattern;
    }
    ~PrivateFolder() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    PrivateFolder(const PrivateFolder&) = delete;
    PrivateFolder& operator=(const PrivateFolder&) = delete;

    [[nodiscard]] const fs::path& path() const { return path_; }

private:
    fs::path path_;
};

/// "10" of "10.3.0".
std::string major(const std::string& version) {
    return version.substr(0, version.find('.'));
}

void check_fits(const Plugin& plugin, const std::string& where, const TensorRt& tensorrt) {
    if (*plugin.sm != tensorrt.sm()) {
        throw user_error(where, "a plugin for this GPU (SM" + std::to_string(tensorrt.sm()) + ")",
                         "one for SM" + std::to_string(*plugin.sm), rebuild);
    }
    if (major(plugin.tensorrt) != major(tensorrt.version())) {
        throw user_error(where, "a plugin for TensorRT " + tensorrt.version(), "one for " + plugin.tensorrt, rebuild);
    }
}

}  // namespace

void load_plugins(const Bundle& bundle, TensorRt& tensorrt) {
    for (const Plugin& plugin : bundle.manifest().plugins) {
        if (!plugin.sm) {
            continue;  // sources, of a kit
        }
        const std::string where = bundle.path() + ": plugin " + plugin.name;
        check_fits(plugin, where, tensorrt);
        // The loader wants a file: a copy of the very bytes that the bundle hands out, also where they lie in a .dxb.
        const std::shared_ptr<const Mapping> library = bundle.map(plugin.files.front());
        const PrivateFolder folder;
        const fs::path file = folder.path() / ("libdexport_" + plugin.name + ".so");
        write_atomically(file, {std::string_view(reinterpret_cast<const char*>(library->data()), library->size())});
        if (const std::string said = tensorrt.load_plugin(file.string()); !said.empty()) {
            throw failure(where, "a library that TensorRT takes", said, rebuild);
        }
    }
}

}  // namespace dexport
