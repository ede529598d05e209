"""Buffers that the caller gives instead of having them computed, such as the embeddings of prompts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from dexport.errors import UserError
from dexport.runtime.program import Draw, Instruction, Program, reads, writes
from dexport.runtime.strict_json import names_text, shown


def with_given(program: Program, names: Collection[str]) -> Program:
    """The program whose request fills `names` too; what computes them before the loop is left out, with all that only that needs.

    Buffers that the request fills anyway change nothing.

    Args:
        names: buffers of the request, or that `begin` computes and nothing writes later.

    Raises:
        UserError: a name that is neither; one whose call computes another that is needed and not given.
    """
    later = [instruction for block in (*program.iterations, program.end) for instruction in block]
    drawn = [instruction for instruction in program.begin if isinstance(instruction, Draw)]
    computed = _written(program.begin) - _written(later) - _written(drawn)
    for name in names:
        if name not in computed and name not in program.request:
            made = f", or of what is made of them, {names_text(computed)}" if computed else ""
            expected = f"one of the inputs {names_text(program.request)}{made}"
            raise UserError("buffers", expected=expected, got=f"'{shown(name)}'", fix="leave it out")
    needed = {*program.results, *(ref.buffer for instruction in later for ref in reads(instruction))}
    kept = []
    for instruction in reversed(program.begin):
        written = _written([instruction])
        missing = written & needed - set(names)
        if not missing and not isinstance(instruction, Draw):
            continue
        if given := written & set(names):
            expected = f"{names_text(missing)} too, made with {names_text(given)}"
            raise UserError("buffers", expected=expected, got="none", fix="give all of them")
        kept.append(instruction)
        needed |= {ref.buffer for ref in reads(instruction)}
    request = tuple(name for name in dict.fromkeys((*program.request, *names)) if name in needed)
    return replace(program, request=request, begin=tuple(reversed(kept)))


def _written(instructions: Collection[Instruction]) -> set[str]:
    return {ref.buffer for instruction in instructions for ref in writes(instruction)}
