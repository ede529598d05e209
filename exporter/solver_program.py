"""A solver's part of a sampling program: its buffers, and its instructions before the loop and around each model call.

Buffers: `sample` (the current sample, always), `model_input` where the model does not see the sample itself, `history1` ... and
`step_noise0` ... The model's output is not a buffer of the solver: it comes as terms, so that guidance is part of the solver's own sums.
Only solvers whose steps are components sum it up in `model_output` first.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dexport.exporter.recurrence import Step, Update
from dexport.exporter.solver import Solver
from dexport.exporter.step_component import SteppedSolver
from dexport.exporter.step_trace import SCALARS
from dexport.runtime.program import Buffer, Coefficient, Combine, Draw, Index, Instruction, Linear, Ref, Row, Rows, Run, Term

SAMPLE = "sample"
MODEL_INPUT = "model_input"
MODEL_OUTPUT = "model_output"
NEXT_SAMPLE = "next_sample"


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
    stepped = solver.stepped
    names += [MODEL_OUTPUT] if stepped else []
    scalars = {
        scalar_table(number): Buffer("float32", Rows(1), component.table.shape[2:])
        for number, component in enumerate(stepped.components if stepped else ())
        if component.table.size
    }
    return {name: Buffer("float32", Rows(1, per_batch=True), sizes) for name in names} | scalars


def solver_tables(solver: Solver) -> dict[str, npt.NDArray[np.float32]]:
    """The tables that the instructions below index: none but for stepped solvers."""
    components = solver.stepped.components if solver.stepped else ()
    return {scalar_table(number): component.table for number, component in enumerate(components) if component.table.size}


def step_component(number: int) -> str:
    """Name of the component that runs `solver.stepped.components[number]`; its output port is `next_sample`."""
    return f"solver_step{number}"


def scalar_table(number: int) -> str:
    """Name of the table and of the buffer of a step component's scalars."""
    return f"solver_step{number}_scalars"


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
    if solver.stepped:
        return (*draws, *_component_step(solver.stepped, call, output_terms))
    return (*draws, *(_combine(update, output_terms) for update in step.updates))


def _stream_matters(solver: Solver, call: int) -> bool:
    """Draws are made even where their coefficient is 0, or later ones would get the wrong numbers; after the last used one they are not."""
    later = solver.recurrence.steps[call:]
    return solver.stepped is not None or any(update.noise.any() for step in later for update in step.updates)


def _component_step(stepped: SteppedSolver, call: int, output_terms: Sequence[tuple[Ref, Coefficient]]) -> tuple[Instruction, ...]:
    use = stepped.uses[call]
    component = stepped.components[use.component]
    scalars = scalar_table(use.component)
    guided = Combine(Ref(MODEL_OUTPUT), tuple(Term(ref, coefficient) for ref, coefficient in output_terms))
    index = (Index(Ref(scalars), scalars, use.row),) if component.table.size else ()
    names = {SCALARS: scalars} | {name: f"step_{name}" for name in component.inputs if name.startswith("noise")}
    inputs = {name: (Ref(names.get(name, name)),) for name in component.inputs}
    return (guided, *index, Run(step_component(use.component), inputs, {NEXT_SAMPLE: (Ref(SAMPLE),)}))


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
