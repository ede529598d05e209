"""Recurrences: as few buffers as the system that made the table, and the same numbers."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.exporter.recurrence import Array, Table, find_recurrence, replay


def hidden_system(order: int, calls: int, draws: int, seed: int) -> Table:
    """A random solver with `order` hidden buffers, the first of which is the sample, and what its samples are made of."""
    random = np.random.default_rng(seed)
    columns = 1 + calls + calls * draws
    state = np.zeros((order, columns))
    state[0, 0] = 1.0
    inputs, samples = [], [state[0].copy()]
    for call in range(calls):
        inputs.append(random.standard_normal(order) @ state)
        fresh = np.zeros((1 + draws, columns))
        fresh[0, 1 + call] = 1.0
        for draw in range(draws):
            fresh[1 + draw, 1 + calls + call * draws + draw] = 1.0
        turn, _ = np.linalg.qr(random.standard_normal((order, order)))
        state = turn @ state + random.uniform(0.5, 1.5, (order, 1 + draws)) @ fresh
        samples.append(state[0].copy())
    return Table(np.array(inputs), np.array(samples), (draws,) * calls)


def repeats(table: Table) -> bool:
    random = np.random.default_rng(0)
    values = random.standard_normal((table.samples.shape[1], 3))
    outputs, noises = values[1 : 1 + table.calls], values[1 + table.calls :]
    inputs, samples = replay(find_recurrence(table), values[0], outputs, noises)
    return np.allclose(inputs, table.inputs @ values, atol=1e-8) and np.allclose(samples, table.samples @ values, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(order=st.integers(1, 5), calls=st.integers(1, 10), draws=st.integers(0, 2), seed=st.integers(0, 2**32))
def test_a_hidden_system_is_found_again(order: int, calls: int, draws: int, seed: int) -> None:
    table = hidden_system(order, calls, draws, seed)
    assert find_recurrence(table).rank <= order
    assert repeats(table)


def adams(order: int, calls: int) -> Table:
    """x + mean of the last `order` outputs: a linear multistep method, which needs order - 1 old outputs."""
    samples = np.zeros((calls + 1, 1 + calls))
    samples[:, 0] = 1.0
    for call in range(calls):
        samples[call + 1] = samples[call]
        first = max(0, call + 1 - order)
        samples[call + 1, 1 + first : 2 + call] += 1.0 / (call + 1 - first)
    return Table(samples[:-1], samples, (0,) * calls)


def test_old_outputs_stay_where_they_are_and_what_goes_unused_is_not_kept() -> None:
    recurrence = find_recurrence(adams(3, 12))
    assert repeats(adams(3, 12))
    assert recurrence.rank == 3
    assert all(len(step.updates) <= 2 for step in recurrence.steps)
    assert [update.slot for update in recurrence.steps[-1].updates] == [0]


def test_no_update_reads_what_an_earlier_one_of_its_step_wrote() -> None:
    for step in find_recurrence(adams(4, 12)).steps:
        written: list[int] = []
        for update in step.updates:
            assert not np.asarray(update.state)[written].any()
            written.append(update.slot)
        assert written[-1] == 0


def test_a_zero_table_has_a_recurrence() -> None:
    zeros: Array = np.zeros((3, 3))
    zeros[0, 0] = 1.0
    recurrence = find_recurrence(Table(zeros[:2], zeros, (0, 0)))
    assert recurrence.rank == 1
    assert repeats(Table(zeros[:2], zeros, (0, 0)))
