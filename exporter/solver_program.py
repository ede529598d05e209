"""A solver's part of a sampling program: its buffers, and its instructions before the loop and around each model call.

Buffers: `sample` (the current sample, always), `model_input` where the model does not see the sample itself, `history1` ... and
`step_noise0` ... The model's output is not a buffer of the solver: it comes as terms, so that guidance is part of the solver's own sums.
"""

from collections.abc import Sequence

import numpy as np

from dexport.exporter.recurrence import Step, Update
from dexport.exporter.solver import Solver
from dexport.runtime.program import Buffer, Coefficient, Combine, Draw, Instruction, Linear, Ref, Row, Rows, Term

SAMPLE = "sample"
MODEL_INPUT = "model_input"


def solver_buffers(solver: Solver, sizes: tuple[int, ...]) -> dict[str, Buffer]:
    """The buffers that the instructions below name.

    Args:
        solver: from `probe`.
        sizes: sizes of the latent without axis 0.
    """
    steps = solver.recurrence.steps
    names = [_slot(slot) for slot in range(solver.recurrence.slots)]
    names += [f"step_noise{index}" for index in range(max(step.draws for step in steps))]
    if any(not _is_sample(step) for step in steps):
        names.append(MODEL_INPUT)
    return {name: Buffer("float32", Rows(1, per_batch=True), sizes) for name in names}


def begin_instructions(solver: Solver, clean: Ref | None = None) -> tuple[Instruction, ...]:
    """Makes the first sample.

    Args:
        solver: from `probe`.
        clean: the encoded picture that a run with a later start step begins from.
    """
    sample = Ref(SAMPLE)
    terms = [Term(sample, solver.init_noise)]
    if solver.init_clean:
        if clean is None:
            raise ValueError(f"a run from step {solver.schedule.start} needs a clean sample to start from")
        terms.append(Term(clean, solver.init_clean))
    elif solver.init_noise == 1.0:
        return (Draw(sample),)
    return (Draw(sample), Combine(sample, tuple(terms)))


def model_input(solver: Solver, call: int) -> tuple[tuple[Instruction, ...], Ref]:
    """Instructions that make the model's input of a call, and where it is: often the sample itself, and no instruction."""
    step = solver.recurrence.steps[call]
    if _is_sample(step):
        return (), Ref(SAMPLE)
    return (Combine(Ref(MODEL_INPUT), _state_terms(step.model_input)),), Ref(MODEL_INPUT)


def solver_instructions(solver: Solver, call: int, output_terms: Sequence[tuple[Ref, Coefficient]]) -> tuple[Instruction, ...]:
    """Instructions after a model call: draw the step's noise, write the new history, update the sample.

    Args:
        solver: from `probe`.
        call: index of the model call.
        output_terms: refs and coefficients whose sum is the (guided) model output.

    Raises:
        ValueError: an output coefficient is a table row and the solver would have to scale it.
    """
    step = solver.recurrence.steps[call]
    drawn = range(step.draws) if _stream_matters(solver, call) else ()
    draws = [Draw(Ref(f"step_noise{index}")) for index in drawn]
    return (*draws, *(_combine(update, output_terms) for update in step.updates))


def _stream_matters(solver: Solver, call: int) -> bool:
    """Draws are made even where their coefficient is 0, or later ones would get the wrong numbers; after the last used one they are not."""
    later = solver.recurrence.steps[call:]
    return any(update.noise.any() for step in later for update in step.updates)


def _combine(update: Update, output_terms: Sequence[tuple[Ref, Coefficient]]) -> Combine:
    terms = [*_state_terms(update.state)]
    if update.output:
        terms += [Term(ref, _scaled(coefficient, update.output)) for ref, coefficient in output_terms]
    terms += [Term(Ref(f"step_noise{index}"), float(scale)) for index, scale in enumerate(update.noise) if scale]
    return Combine(Ref(_slot(update.slot)), tuple(terms) or (Term(Ref(SAMPLE), 0.0),))


def _state_terms(state: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> tuple[Term, ...]:
    """The sample's term comes first, so that its update happens in place."""
    return tuple(Term(Ref(_slot(slot)), float(scale)) for slot, scale in enumerate(state) if scale)


def _scaled(coefficient: Coefficient, factor: float) -> Coefficient:
    match coefficient:
        case Linear(constant, slopes):
            return Linear(constant * factor, {name: slope * factor for name, slope in slopes.items()})
        case Row(table, row):
            raise ValueError(f"row {row} of table '{table}' cannot be scaled by the solver; combine it into a buffer first")
    return coefficient * factor


def _slot(slot: int) -> str:
    return SAMPLE if slot == 0 else f"history{slot}"


def _is_sample(step: Step) -> bool:
    return bool(step.model_input[0] == 1.0) and not step.model_input[1:].any()
