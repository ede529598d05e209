#include "request.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.h"
#include "half.h"

namespace dexport {
namespace {

bool is_given(const Asked& asked, const std::string& buffer) {
    return asked.buffers.count(buffer) != 0;
}

bool is_input(const Program& program, const std::string& buffer) {
    return std::find(program.request.begin(), program.request.end(), buffer) != program.request.end();
}

/// Whether a buffer is still to be filled: neither it nor what is computed of it was given.
bool is_wanted(const std::string& buffer, const Program& program, const Asked& asked) {
    return !is_given(asked, buffer) && (asked.buffers.empty() || is_input(program, buffer));
}

/// The buffers that a prompt has to fill.
std::vector<std::string> wanted_of_prompt(const TextEntry& text, const Program& program, const Asked& asked) {
    std::vector<std::string> wanted;
    for (const std::optional<std::string>& name : {std::optional(text.ids), text.mask}) {
        if (name && is_wanted(*name, program, asked)) {
            wanted.push_back(*name);
        }
    }
    return wanted;
}

void check(const Manifest& manifest, const Program& program, const Asked& asked) {
    std::vector<std::string> of_prompt;
    for (const TextEntry& text : manifest.texts) {
        for (const std::string& name : wanted_of_prompt(text, program, asked)) {
            of_prompt.push_back(name);
        }
    }
    const bool wants_class = std::any_of(manifest.requests.begin(), manifest.requests.end(), [&](const RequestBuffer& each) {
        return each.source == "class" && is_wanted(each.buffer, program, asked);
    });
    if (!of_prompt.empty() && !asked.prompts && !asked.buffers.empty()) {
        throw user_error("prompt", "a text, or the buffers " + names_text(of_prompt) + " too", "neither", "give one of them");
    }
    if (!of_prompt.empty() && !asked.prompts) {
        throw user_error("prompt", "a text", "none", "give --prompt");
    }
    if (manifest.texts.empty() && asked.prompts) {
        throw user_error("prompt", "none, as this model takes class labels", "a text", "give --class-label instead");
    }
    if (of_prompt.empty() && asked.prompts) {
        throw user_error("prompt", "none, as buffers take its place", "a text", "leave one of them out");
    }
    if (wants_class && !asked.class_labels) {
        throw user_error("class label", "a number", "none", "give --class-label");
    }
    if (!wants_class && asked.class_labels) {
        throw user_error("class label", "none, as this model takes prompts", "a number", "give --prompt instead");
    }
    for (const auto& item : asked.buffers) {
        if (!is_input(program, item.first)) {
            throw user_error("buffers", "one of the inputs " + names_text(program.request), "'" + shown(item.first) + "'", "leave it out");
        }
    }
}

/// One value per row of a buffer.
std::vector<double> values_of(const RequestBuffer& wanted, const Asked& asked, bool guided, std::int64_t batch) {
    const auto rows = static_cast<std::size_t>(batch);
    std::vector<double> values;
    if (wanted.source == "class") {
        values.assign(guided ? rows : 0, wanted.negative);
        values.insert(values.end(), asked.class_labels->begin(), asked.class_labels->end());
    } else if (wanted.source == "given") {
        values.assign(guided ? rows : 0, asked.negative_prompts ? 1.0 : 0.0);
        values.insert(values.end(), rows, 1.0);
    } else {
        const auto found = asked.parameters.find(wanted.parameter.value_or(""));
        if (found == asked.parameters.end()) {
            throw user_error("request '" + wanted.buffer + "'", "one of the parameters " + names_text(asked.parameters),
                             "'" + wanted.parameter.value_or("") + "'", "rebuild the bundle");
        }
        values.assign(guided ? 2 * rows : rows, found->second);
    }
    return values;
}

template <typename Number>
void put(std::byte* target, std::size_t index, Number value) {
    std::memcpy(target + index * sizeof value, &value, sizeof value);
}

void put_as(Dtype dtype, std::byte* target, std::size_t index, double value) {
    switch (dtype) {
        case Dtype::float32:
            return put(target, index, static_cast<float>(value));
        case Dtype::float16:
            return put(target, index, half_from_float(static_cast<float>(value)));
        case Dtype::int64:
            return put(target, index, static_cast<std::int64_t>(value));
        case Dtype::int32:
            return put(target, index, static_cast<std::int32_t>(value));
        case Dtype::uint8:
            return put(target, index, static_cast<std::uint8_t>(value));
        default:
            return put(target, index, static_cast<std::uint8_t>(value != 0));
    }
}

/// Memory for a buffer of the program, if `count` numbers fill it.
OwnedTensor new_buffer(const Program& program, const std::string& name, std::int64_t batch, std::size_t count) {
    const Buffer& declared = program.buffers.find(name)->second;
    Shape shape = declared.shape(batch);
    if (elements_of(shape) != count) {
        const std::string expected = std::to_string(elements_of(shape)) + " numbers for shape " + shape_text(shape);
        throw user_error("request '" + name + "'", expected, std::to_string(count), "give as many");
    }
    return owned_tensor(declared.dtype, std::move(shape));
}

}  // namespace

std::map<std::string, OwnedTensor> request_buffers(const Manifest& manifest, const Program& program, bool guided, const Asked& asked,
                                                   std::int64_t batch, const Tokenize& tokenize) {
    check(manifest, program, asked);
    std::map<std::string, OwnedTensor> buffers;
    const auto fill = [&](const std::string& name, const auto& values) {
        if (!is_input(program, name) || is_given(asked, name)) {
            return;
        }
        OwnedTensor buffer = new_buffer(program, name, batch, values.size());
        for (std::size_t index = 0; index < values.size(); ++index) {
            put_as(buffer.tensor.dtype, buffer.tensor.data, index, static_cast<double>(values[index]));
        }
        buffers[name] = std::move(buffer);
    };
    for (const TextEntry& text : manifest.texts) {
        if (wanted_of_prompt(text, program, asked).empty()) {
            continue;
        }
        std::vector<std::string> prompts;
        if (guided) {
            prompts = asked.negative_prompts.value_or(std::vector<std::string>(static_cast<std::size_t>(batch)));
        }
        prompts.insert(prompts.end(), asked.prompts->begin(), asked.prompts->end());
        const text::Tokens tokens = tokenize(text, prompts);
        fill(text.ids, tokens.ids);
        if (text.mask) {
            fill(*text.mask, tokens.mask);
        }
    }
    for (const RequestBuffer& wanted : manifest.requests) {
        if (is_wanted(wanted.buffer, program, asked)) {
            fill(wanted.buffer, values_of(wanted, asked, guided, batch));
        }
    }
    for (const auto& [name, given] : asked.buffers) {
        OwnedTensor buffer = new_buffer(program, name, batch, given.elements());
        if (given.dtype != buffer.tensor.dtype || given.shape != buffer.tensor.shape) {
            throw user_error("request '" + name + "'", kind_text(buffer.tensor.dtype, buffer.tensor.shape),
                             kind_text(given.dtype, given.shape), "give an array of that dtype and shape");
        }
        std::memcpy(buffer.tensor.data, given.data, given.bytes());
        buffers[name] = std::move(buffer);
    }
    return buffers;
}

}  // namespace dexport
