"""One line of text for each instruction that runs: what shows that two runtimes do the same.

A scale is written as the bits of its float32 in hexadecimal, so that equal lines mean equal numbers: `3f800000*sample` is 1 times
the sample. The C++ runtime writes the same lines.
"""

from collections.abc import Mapping

import numpy as np

from dexport.runtime.program import Coefficient, Combine, Draw, Index, Instruction, Linear, Ref, Row, Run


def trace_line(place: str, instruction: Instruction, parameters: Mapping[str, float]) -> str:
    """The line of an instruction.

    Args:
        place: as `Program.instructions` names it.
        instruction: of a checked program.
        parameters: of the request, all that the program has.
    """
    match instruction:
        case Run(component, inputs, outputs):
            text = f"run {component}{_ports(inputs)} ->{_ports(outputs)}"
        case Combine(out, terms):
            text = f"combine {out} = {' + '.join(f'{_scale(term.scale, parameters)}*{term.buffer}' for term in terms)}"
        case Draw(out):
            text = f"noise {out}"
        case Index(out, table, row):
            text = f"index {out} = {table}[{row}]"
    return f"{place} {text}"


def scale_of(coefficient: float | Linear, parameters: Mapping[str, float]) -> np.float32:
    """A coefficient that is no table row, rounded to float32 as sums use it."""
    if isinstance(coefficient, Linear):
        slopes = coefficient.slopes.items()
        coefficient = coefficient.constant + sum(slope * parameters[name] for name, slope in slopes)
    rounded: np.float32 = np.float32(coefficient)
    return rounded


def _ports(ports: Mapping[str, tuple[Ref, ...]]) -> str:
    return "".join(f" {port}={','.join(map(str, refs))}" for port, refs in ports.items())


def _scale(coefficient: Coefficient, parameters: Mapping[str, float]) -> str:
    if isinstance(coefficient, Row):
        return f"{coefficient.table}[{coefficient.row}]"
    return f"{int(scale_of(coefficient, parameters).view(np.uint32)):08x}"
