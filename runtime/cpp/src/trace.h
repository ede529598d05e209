#pragma once

#include <map>
#include <string>

#include "program.h"

namespace dexport {

using Parameters = std::map<std::string, double, std::less<>>;

/// A coefficient that is no table row, rounded to float32 as sums use it.
[[nodiscard]] float scale_of(const Coefficient& coefficient, const Parameters& parameters);

/// One line that says what an instruction does, letter for letter what `trace.py` writes; scales are the bits of their float32.
[[nodiscard]] std::string trace_line(const std::string& place, const Instruction& instruction, const Parameters& parameters);

}  // namespace dexport
