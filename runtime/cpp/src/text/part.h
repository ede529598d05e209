#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "json.h"

namespace dexport::text {

/// A stretch of the prompt on its way to token ids. Never empty.
struct Piece {
    std::string text;
    /// Its first character comes from the prompt's first character.
    bool at_start = false;
    /// It is this token already, whatever its text.
    std::optional<std::uint32_t> id;
};

/// What is wrong with a part of a tokenizer.json; `Tokenizer` makes an `Error` of it, as it knows the file.
class PartError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// The file uses what this runtime cannot do.
class UnsupportedPart : public PartError {
public:
    using PartError::PartError;
};

}  // namespace dexport::text
