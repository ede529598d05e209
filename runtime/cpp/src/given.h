#pragma once

#include "program.h"
#include "tensor_file.h"

namespace dexport {

/// The program whose request fills `buffers` too; what computes them before the loop is left out, with all that only that needs.
///
/// Throws a user error: a buffer that the request does not fill and `begin` does not compute, or that is written later; one whose call
/// computes another that is needed and not given.
[[nodiscard]] Program with_given(const Program& program, const Tensors& buffers);

}  // namespace dexport
