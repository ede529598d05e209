"""From a table of what every sample is made of to a recurrence over the fewest buffers.

The inputs of a run are the first sample, the model outputs and the noise draws. Every model input and every sample of a linear
scheduler is a combination of those that came before it: one row of the table. Before call i the future depends on the past only
through H_i, the rows of the future restricted to the columns of the past, so rank(H_i) buffers are enough and fewer are not
(Ho and Kalman, "Effective construction of linear state-variable models from input/output functions", 1966).

Which buffers: any basis of the row space of H_i would do. The current sample comes first, because callbacks want it. Then, so that
little memory is touched: buffers that are there and stay useful as they are, then combinations that stay useful longest (an older
model output, say), each with the fewest terms. No step overwrites a buffer that another new one is made of: new history goes to
slots that hold nothing live, the sample is updated last, in place.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_RANK_TOLERANCE = 1e-9
"""Of a row's norm; probing is exact to about 1e-14."""
_ZERO = 1e-12
_INDEPENDENT = 1e-3
"""Least part of a direction, relative to its norm, that the chosen buffers must not already span."""
_LOOK_AHEAD = 8


@dataclass(frozen=True)
class Table:
    """What a run is made of, in float64.

    Attributes:
        inputs: [T, columns], model inputs.
        samples: [T + 1, columns], the sample before each call and after the last.
        draws: [T], how many noises each call's step draws. Columns: first sample, T model outputs, noises.
    """

    inputs: Array
    samples: Array
    draws: tuple[int, ...]

    @property
    def calls(self) -> int:
        """The number of model calls."""
        return len(self.draws)

    def noise_column(self, call: int) -> int:
        """The column of the first noise that the step of `call` draws."""
        return 1 + self.calls + sum(self.draws[:call])

    def past(self, call: int) -> npt.NDArray[np.intp]:
        """Columns of what exists before `call`."""
        return np.array([*range(1 + call), *range(1 + self.calls, self.noise_column(call))], np.intp)


@dataclass(frozen=True, eq=False)
class Update:
    """One buffer's new value: state . (slots before the step) + output * model output + noise . (the step's draws)."""

    slot: int
    state: Array
    output: float
    noise: Array


@dataclass(frozen=True, eq=False)
class Step:
    """One model call: its input from the slots, then the updates, in an order in which nothing is overwritten too early."""

    model_input: Array
    updates: tuple[Update, ...]
    draws: int


@dataclass(frozen=True, eq=False)
class Recurrence:
    """Slot 0 is the sample; `rank` is the greatest number of slots that are live at once, `slots` how many are needed."""

    steps: tuple[Step, ...]
    rank: int
    slots: int


def find_recurrence(table: Table) -> Recurrence:
    """The recurrence with the fewest live buffers that makes a table's inputs and samples."""
    spaces = [_row_space(table, call) for call in range(table.calls + 1)]
    state = table.samples[:1]  # [rank, columns]: what each live buffer is made of
    slots, rank, used, steps = [0], 1, 1, []
    for call in range(table.calls):
        noises = table.draws[call]
        fresh = np.zeros((1 + noises, state.shape[1]))
        fresh[0, 1 + call] = 1.0
        fresh[range(1, 1 + noises), range(table.noise_column(call), table.noise_column(call) + noises)] = 1.0
        available = np.concatenate([state, fresh])
        chosen = _choose(available, len(state), spaces[call + 1 : call + 2 + _LOOK_AHEAD], table.samples[call + 1])
        kept = [_unit_index(row, len(state)) for row in chosen]
        new_slots = _place(slots, kept)
        used = max(used, 1 + max(slots + new_slots))
        rank = max(rank, len(chosen))
        moves = [index for index in range(1, len(chosen)) if kept[index] is None] + [0]
        updates = [(new_slots[index], chosen[index]) for index in moves]
        model_input = _clean(_solve(table.inputs[call], state))
        steps.append((slots, model_input, updates, noises))
        state, slots = chosen @ available, new_slots
    return Recurrence(tuple(_step(used, *step) for step in steps), rank, used)


def replay(recurrence: Recurrence, sample: Array, outputs: Array, noises: Array) -> tuple[Array, Array]:
    """Runs a recurrence on given arrays.

    Args:
        recurrence: of T calls.
        sample: [n], the first sample.
        outputs: [T, n], model outputs.
        noises: [draws, n].

    Returns:
        Model inputs [T, n] and samples [T + 1, n].
    """
    slots = np.zeros((recurrence.slots, len(sample)))
    slots[0] = sample
    inputs, samples, drawn = [], [sample], 0
    for step, output in zip(recurrence.steps, outputs):
        fresh = noises[drawn : drawn + step.draws]
        drawn += step.draws
        inputs.append(step.model_input @ slots)
        for update in step.updates:
            slots[update.slot] = update.state @ slots + update.output * output + update.noise @ fresh
        samples.append(slots[0].copy())
    return np.array(inputs), np.array(samples)


def _row_space(table: Table, call: int) -> Array:
    """Orthonormal rows [rank, columns] of what the future wants to know of the past; zero outside the past's columns."""
    future = np.concatenate([table.samples[call:], table.inputs[call:]])
    norms = np.linalg.norm(future, axis=1, keepdims=True)
    scaled = np.divide(future, norms, out=np.zeros_like(future), where=norms > 0)
    past = table.past(call)
    _, sizes, rows = np.linalg.svd(scaled[:, past], full_matrices=False)
    space = np.zeros((int((sizes > _RANK_TOLERANCE).sum()), future.shape[1]))
    space[:, past] = rows[: len(space)]
    return space


def _choose(available: Array, live: int, spaces: list[Array], sample: Array) -> Array:
    """Coefficients [rank, available] of the next buffers: the sample first, the rest as the module says.

    Args:
        available: [live + fresh, columns], buffers and fresh arrays that new ones can be made of.
        live: how many of them are buffers.
        spaces: row spaces that are wanted after this step, after the next, ...
        sample: [columns], the next sample.
    """
    wanted = spaces[0]
    chosen = [_clean(_solve(sample, available))]
    if len(wanted) == 0:
        return np.array(chosen)
    kept = [index for index in range(1, live) if _inside(available[index], wanted)]
    units = list(np.eye(len(available))[kept])
    candidates = [units] + [_sparse_basis(_solve(space, available), kept) for space in _lasting(spaces)]
    for threshold in (_INDEPENDENT, _RANK_TOLERANCE):
        for group in candidates:
            for row in group:
                if len(chosen) < len(wanted) and _novelty(row, chosen) > threshold:
                    chosen.append(row)
    return np.array(chosen)


def _lasting(spaces: list[Array]) -> list[Array]:
    """Subspaces of the first space that lie in more and more of the following ones; the longest-lasting first."""
    lasting = [spaces[0]]
    for later in spaces[1:]:
        overlap, sizes, _ = np.linalg.svd(lasting[-1] @ later.T)
        common = overlap[:, : len(sizes)].T[sizes > 1 - _RANK_TOLERANCE] @ lasting[-1]
        if not len(common):
            break
        lasting.append(common)
    return lasting[::-1]


def _sparse_basis(rows: Array, first_pivots: list[int]) -> list[Array]:
    """Reduced row echelon form with greatest pivots, those of `first_pivots` before others; rows with few terms first."""
    rest = rows.copy()
    pivots: list[int] = []
    for columns in (first_pivots, range(rows.shape[1])):
        while len(pivots) < len(rows):
            free = np.abs(rest[len(pivots) :])
            open_columns = [column for column in columns if column not in pivots]
            if not open_columns or free[:, open_columns].max() < 1e-6:
                break
            row, column = np.unravel_index(free[:, open_columns].argmax(), (len(free), len(open_columns)))
            pivot_row, pivot = len(pivots) + int(row), open_columns[int(column)]
            rest[[len(pivots), pivot_row]] = rest[[pivot_row, len(pivots)]]
            rest[len(pivots)] /= rest[len(pivots), pivot]
            others = np.arange(len(rest)) != len(pivots)
            rest[others] -= np.outer(rest[others, pivot], rest[len(pivots)])
            pivots.append(pivot)
    cleaned = [_clean(row / np.abs(row).max()) for row in rest[: len(pivots)]]
    return sorted(cleaned, key=lambda row: int((row != 0).sum()))


def _place(slots: list[int], kept: list[int | None]) -> list[int]:
    """Slots of the next buffers: kept ones stay, the sample is slot 0, new ones go where nothing live is read from or kept."""
    taken = set(slots)
    placed = [0]
    for source in kept[1:]:
        slot = slots[source] if source is not None else next(free for free in range(1, 2 + len(taken)) if free not in taken)
        taken.add(slot)
        placed.append(slot)
    return placed


def _step(used: int, slots: list[int], model_input: Array, updates: list[tuple[int, Array]], draws: int) -> Step:
    def spread(coefficients: Array) -> Array:
        full = np.zeros(used)
        full[slots] = coefficients
        return full

    live = len(slots)
    made = tuple(Update(slot, spread(row[:live]), float(row[live]), row[live + 1 :].copy()) for slot, row in updates)
    return Step(spread(model_input), made, draws)


def _solve(rows: Array, basis: Array) -> Array:
    """Coefficients c with c @ basis = rows."""
    return np.asarray(np.linalg.lstsq(basis.T, rows.T, rcond=None)[0].T)


def _clean(row: Array) -> Array:
    """Without rounding dust: what is nearly 0 (of the row's greatest) or nearly 1 becomes exactly that."""
    whole = np.where(np.abs(row - 1.0) <= _ZERO, 1.0, row)
    return np.where(np.abs(row) <= _ZERO * np.abs(row).max(initial=0.0), 0.0, whole)


def _inside(vector: Array, space: Array) -> bool:
    return bool(np.linalg.norm(vector - space.T @ (space @ vector)) <= _RANK_TOLERANCE * np.linalg.norm(vector))


def _novelty(row: Array, chosen: list[Array]) -> float:
    """Sine of the angle between a row and the span of the chosen ones."""
    basis, _ = np.linalg.qr(np.array(chosen).T)
    return float(np.linalg.norm(row - basis @ (basis.T @ row)) / np.linalg.norm(row))


def _unit_index(row: Array, live: int) -> int | None:
    """The buffer that a row merely repeats; the sample's own slot never counts, because it is overwritten."""
    nonzero = np.flatnonzero(row)
    if len(nonzero) == 1 and 0 < nonzero[0] < live and row[nonzero[0]] == 1.0:
        return int(nonzero[0])
    return None
