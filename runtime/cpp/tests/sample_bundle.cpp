#include "sample_bundle.h"

#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <openvino/core/graph_util.hpp>
#include <openvino/core/model.hpp>
#include <openvino/op/add.hpp>
#include <openvino/op/clamp.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/op/convert.hpp>
#include <openvino/op/multiply.hpp>
#include <openvino/op/parameter.hpp>
#include <sstream>

#include "error.h"
#include "sha256.h"

namespace dexport {
namespace {

namespace fs = std::filesystem;
using ov::op::v0::Parameter;

std::shared_ptr<Parameter> input(const std::string& name, const ov::PartialShape& shape) {
    const auto parameter = std::make_shared<Parameter>(ov::element::f32, shape);
    parameter->output(0).set_names({name});
    return parameter;
}

std::shared_ptr<ov::Node> number(float value) {
    return ov::op::v0::Constant::create(ov::element::f32, ov::Shape{1}, std::vector<float>{value});
}

std::shared_ptr<ov::Model> model_of(const std::shared_ptr<ov::Node>& output, const std::string& name, const ov::ParameterVector& inputs) {
    output->output(0).set_names({name});
    return std::make_shared<ov::Model>(ov::OutputVector{output}, inputs);
}

std::shared_ptr<ov::Model> denoiser() {
    const auto x = input("x", {-1, 4, 4, 3}), label = input("label", {-1, 1, 1, 1});
    return model_of(std::make_shared<ov::op::v1::Multiply>(x, label), "y", {x, label});
}

std::shared_ptr<ov::Model> decoder() {
    const auto x = input("x", {-1, 4, 4, 3});
    const auto level = std::make_shared<ov::op::v1::Add>(std::make_shared<ov::op::v1::Multiply>(x, number(32)), number(128));
    const auto clamped = std::make_shared<ov::op::v0::Clamp>(level, 0, 255);
    return model_of(std::make_shared<ov::op::v0::Convert>(clamped, ov::element::u8), "image", {x});
}

std::string content_of(const fs::path& path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

Json port(const char* dtype, const Json& shape) {
    return {{"dtype", dtype}, {"shape", shape}};
}

Json component(const std::string& name, const Json& inputs, const Json& outputs) {
    const Json files = {"engines/" + name + ".xml", "engines/" + name + ".bin"};
    const Json variant = {{"size", nullptr}, {"artifact", files[0]}, {"format", "openvino"}, {"files", files},
                          {"native", false}, {"kernels", nullptr},   {"profiles", nullptr}};
    return {{"inputs", inputs},  {"outputs", outputs},  {"variants", Json::array({variant})}, {"parameters", 0},
            {"weight_bytes", 0}, {"precision", "fp32"}, {"islands", Json::array()},           {"note", ""}};
}

Json manifest() {
    const Json picture = {"batch", 4, 4, 3};
    Json document = Json::parse(R"({"schema": 1, "dexport": "0.1.0", "created": "2026-01-31T12:00:00Z",
        "model": {"class_name": "Toy", "name": "toy", "sha256": "0000000000000000000000000000000000000000000000000000000000000000"},
        "family": "toy", "target": "cpu", "backend": "openvino", "precision": "fp32", "recipe": null, "config": {}, "components": {},
        "text": [], "requests": [{"buffer": "label", "source": "class", "parameter": null, "negative": 0}], "batch": 1,
        "guidance": {"kind": "none", "default": 1.0}, "frames_per_second": null, "sizes": [[4, 4]], "frames": null,
        "programs": [{"file": "programs/toy.json", "tables": null, "scheduler": "Toy", "steps": 3, "size": [4, 4], "start_step": 0,
                      "guided": false}],
        "hoisting": {}, "files": {}, "golden": [], "quality": null, "report": null})");
    document["components"]["denoiser"] = component(
        "denoiser", {{"x", port("float32", picture)}, {"label", port("float32", {"batch", 1, 1, 1})}}, {{"y", port("float32", picture)}});
    document["components"]["decoder"] = component("decoder", {{"x", port("float32", picture)}}, {{"image", port("uint8", picture)}});
    return document;
}

}  // namespace

Folder::Folder() {
    std::string pattern = (fs::temp_directory_path() / "dexport-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
}

Folder::~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
}

void write_file(const fs::path& path, const std::string& content) {
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << content;
}

std::string refusal_of(const std::function<void()>& body) {
    try {
        body();
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

Json sample_program() {
    Json document = Json::parse(R"({"schema": 1, "name": "toy", "scheduler": "Toy", "steps": 3, "size": [4, 4], "start_step": 0,
        "timesteps": [9, 4, 1], "parameters": {}, "tables": {},
        "buffers": {"label": {"dtype": "float32", "shape": ["batch", 1, 1, 1]}, "sample": {"dtype": "float32", "shape": ["batch", 4, 4, 3]},
                    "eps": {"dtype": "float32", "shape": ["batch", 4, 4, 3]}, "image": {"dtype": "uint8", "shape": ["batch", 4, 4, 3]}},
        "request": ["label"], "results": ["image"], "begin": [{"op": "noise", "out": "sample"}], "iterations": [],
        "end": [{"op": "run", "component": "decoder", "inputs": {"x": ["sample"]}, "outputs": {"image": ["image"]}}]})");
    const Json step = Json::parse(R"([
        {"op": "run", "component": "denoiser", "inputs": {"x": ["sample"], "label": ["label"]}, "outputs": {"y": ["eps"]}},
        {"op": "combine", "out": "sample", "terms": [{"buffer": "sample", "scale": 0.5}, {"buffer": "eps", "scale": 0.25}]}])");
    document["iterations"] = {step, step, step};
    return document;
}

fs::path write_sample_bundle(const fs::path& folder, const std::function<void(Json&)>& edit) {
    fs::create_directories(folder / "engines");
    ov::save_model(denoiser(), folder / "engines" / "denoiser.xml", false);
    ov::save_model(decoder(), folder / "engines" / "decoder.xml", false);
    write_file(folder / "programs" / "toy.json", sample_program().dump());
    Json document = manifest();
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder)) {
        if (entry.is_regular_file()) {
            const std::string content = content_of(entry.path());
            Sha256 hash;
            hash.update(content.data(), content.size());
            document["files"][entry.path().lexically_relative(folder).generic_string()] = {{"sha256", hash.hexadecimal()},
                                                                                           {"bytes", content.size()}};
        }
    }
    if (edit) {
        edit(document);
    }
    write_file(folder / "manifest.json", document.dump());
    return folder;
}

}  // namespace dexport
