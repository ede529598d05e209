#pragma once

#include "manifest.h"
#include "program.h"

namespace dexport {

/// Checks the rules of a sampling program that its schema cannot say; throws a user error that names the instruction.
///
/// 1. Names exist: buffers, tables, parameters, components and their ports; table rows lie inside their table.
/// 2. Parts are legal at every batch: n divides the rows ("2*batch" has halves, "batch" has no parts).
/// 3. A part that is read was written before (by the request or an earlier instruction), and every result is written whole.
/// 4. Shapes agree: the terms of a combine with its result, a broadcast row with its buffer, refs with their port.
/// 5. Only floats are combined or drawn, and only float tables scale.
/// 6. Every size is bounded, so that a hostile program cannot ask for absurd memory.
/// 7. There are results, and where there are several, their frames join: all else of their shapes is the same.
///
/// A port's dimension is a number or a symbol; a symbol has one value within an instruction. Where a component was built for a
/// fixed number of rows and the buffer's rows are per batch, all such ports must mean the same batch.
void check_program(const Program& program, const std::vector<std::pair<std::string, Component>>& components);

}  // namespace dexport
