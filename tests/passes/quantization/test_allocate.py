"""Allocation against trying everything; budgets just met and just missed; groups whose metrics cannot be compared."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.errors import UserError
from dexport.passes.quantization.allocate import Allocation, Budget, Option, Options, allocate, allocate_groups, normalised, smallest

_harm = st.floats(0, 1e3) | st.floats(0, 1e-9)
_option = st.builds(Option, harm=_harm, size=st.integers(0, 10**6).map(float))
_units = st.dictionaries(
    st.sampled_from("abcdef"), st.dictionaries(st.sampled_from(("w2", "w4", "w8")), _option, min_size=1), min_size=1, max_size=6
)


def _everything(options: Options) -> list[Allocation]:
    every = product(*([(unit, choice) for choice in choices] for unit, choices in options.items()))
    found = []
    for chosen in map(dict, every):
        picked = [options[unit][choice] for unit, choice in chosen.items()]
        found.append(Allocation(chosen, sum(o.harm for o in picked), sum(o.size for o in picked)))
    return found


@given(_units, st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_nothing_within_the_budget_does_less_harm(options: Options, share: float) -> None:
    every = _everything(options)
    low, high = min(a.size for a in every), max(a.size for a in every)
    limit = low + share * (high - low)
    found = allocate(options, Budget(limit))
    best = min((a.harm for a in every if a.size <= limit), default=float("inf"))
    largest = max(o.harm for choices in options.values() for o in choices.values())
    assert found.size <= limit
    assert set(found.choices) == set(options)
    assert found.harm <= best + 1e-6 * largest  # the solver's own exactness, relative to the largest harm


@given(_units)
@settings(max_examples=30, deadline=None)
def test_mixed_is_never_worse_than_uniform_at_the_same_size(options: Options) -> None:
    for choice in ("w2", "w4", "w8"):
        if all(choice in choices for choices in options.values()):
            uniform = [choices[choice] for choices in options.values()]
            found = allocate(options, Budget(sum(o.size for o in uniform)))
            worst = max(o.harm for choices in options.values() for o in choices.values())
            assert found.harm <= sum(o.harm for o in uniform) + 1e-6 * worst


def test_a_budget_of_exactly_the_smallest_is_met_and_one_bit_less_is_not() -> None:
    options = {f"layer{i}": {"w4": Option(1.0, 4 * 1001.0), "w8": Option(0.1, 8 * 1001.0)} for i in range(300)}
    least = 300 * 4 * 1001
    assert smallest(options, Budget(0)) == least
    assert set(allocate(options, Budget(least)).choices.values()) == {"w4"}
    with pytest.raises(UserError) as error:
        allocate(options, Budget(least - 1, parameters=300 * 1001), "--average-bits 3.99")
    assert "--average-bits 3.99" in str(error.value)
    assert f"at least {(least + 7) // 8} bytes (4.0000 bits per weight), the smallest possible" in str(error.value)


def test_large_sizes_never_pass_the_budget() -> None:
    options = {f"layer{i}": {"w4": Option(1.0 + i, 4e9 + i), "w8": Option(0.0, 8e9 + 3 * i)} for i in range(60)}
    for limit in (3.1e11, 3.1e11 + 1, 3.6000001e11):
        assert allocate(options, Budget(limit)).size <= limit


def test_what_is_fixed_counts_and_time_is_a_budget_too() -> None:
    options = {"a": {"w4": Option(1.0, 2.0), "w8": Option(0.0, 3.0)}, "b": {"w4": Option(2.0, 2.0), "w8": Option(0.0, 3.0)}}
    found = allocate(options, Budget(6.0, "ms", fixed=1.0))
    assert found == Allocation({"a": "w4", "b": "w8"}, 1.0, 6.0)
    with pytest.raises(UserError, match="at least 5 ms"):
        allocate(options, Budget(4.9, "ms", fixed=1.0))
    assert allocate({}, Budget(4.0, fixed=3.0)) == Allocation({}, 0.0, 3.0)


def test_groups_are_compared_by_shares_of_their_own_worst() -> None:
    # In plain numbers "loud" would take everything; as shares both count, and "quiet" has the layer that matters most in its group.
    groups = {
        "loud": {"a": {"w4": Option(500.0, 4), "w8": Option(0, 8)}, "b": {"w4": Option(500.0, 4), "w8": Option(0, 8)}},
        "quiet": {"c": {"w4": Option(0.009, 4), "w8": Option(0, 8)}, "d": {"w4": Option(0.001, 4), "w8": Option(0, 8)}},
    }
    found = allocate_groups(groups, Budget(20), {"loud": 1.0, "quiet": 1.0})
    assert found.choices == {"a": "w4", "b": "w4", "c": "w8", "d": "w4"}
    assert found.harm == pytest.approx(1.0 + 0.1)
    louder = allocate_groups(groups, Budget(20), {"loud": 2.0, "quiet": 1.0})
    assert "w8" in (louder.choices["a"], louder.choices["b"])
    assert louder.harm == pytest.approx(2.0 - 1.0 + 1.0)
    assert normalised({"x": {"w4": Option(0.0, 1)}}) == {"x": {"w4": Option(0.0, 1)}}


def test_a_judge_divides_the_budget_between_groups() -> None:
    def unit(harm: float) -> dict[str, Option]:
        return {"w4": Option(harm, 4), "w8": Option(0.0, 8)}

    groups = {"first": {f"a{i}": unit(1.0 + i) for i in range(3)}, "second": {f"b{i}": unit(1.0 + i) for i in range(3)}}
    budget = Budget(6 * 4 + 2 * 4)
    tried: list[Allocation] = []

    def only_the_second_matters(allocation: Allocation) -> float:
        tried.append(allocation)
        return sum(1.0 for name, choice in allocation.choices.items() if name.startswith("b") and choice == "w4")

    found = allocate_groups(groups, budget, {"first": 1.0, "second": 1.0}, only_the_second_matters)
    assert [name for name, choice in found.choices.items() if choice == "w8"] == ["b1", "b2"]
    assert all(a.size <= budget.limit for a in tried)
    assert len({tuple(sorted(a.choices.items())) for a in tried}) == len(tried) > 2


def test_what_one_group_does_not_need_goes_to_the_next() -> None:
    groups = {"small": {"a": {"w4": Option(1.0, 4), "w8": Option(0.0, 8)}}, "large": {"b": {"w4": Option(1.0, 40), "w8": Option(0.0, 80)}}}
    found = allocate_groups(groups, Budget(84), {"small": 1.0, "large": 1.0}, lambda a: float(a.choices["b"] == "w4"))
    assert found.choices == {"a": "w4", "b": "w8"}
