#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "text/model.h"

namespace dexport::text {

/// What stands around a prompt: ids, and nothing where the prompt itself goes.
using Template = std::vector<std::optional<std::uint32_t>>;

/// The part "post_processor" of a tokenizer.json. Throws PartError.
[[nodiscard]] Template read_post_processor(const Json& json);

}  // namespace dexport::text
