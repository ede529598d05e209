#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "interpreter.h"
#include "manifest.h"
#include "program.h"
#include "text/tokens.h"

namespace dexport {

/// The conditions of one batch, one entry per picture; nothing where the user gave nothing.
struct Asked {
    std::optional<std::vector<std::string>> prompts;
    std::optional<std::vector<std::string>> negative_prompts;
    std::optional<std::vector<std::int64_t>> class_labels;
    Parameters parameters;
    Tensors buffers;  ///< buffers of the program that the caller has filled, such as token ids; `program` is that of `with_given`
};

/// (name of the text entry, prompts) -> token ids.
using Tokenize = std::function<text::Tokens(const TextEntry&, const std::vector<std::string>&)>;

/// The buffers that `program.request` names, by name, unconditional rows first if the program is guided; `asked.buffers` go first.
///
/// Throws a user error: a prompt or a class label is missing, or given to a model that has none; a buffer that the program does not ask
/// for.
[[nodiscard]] std::map<std::string, OwnedTensor> request_buffers(const Manifest& manifest, const Program& program, bool guided,
                                                                 const Asked& asked, std::int64_t batch, const Tokenize& tokenize);

}  // namespace dexport
