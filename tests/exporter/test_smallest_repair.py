"""The search for the layers to keep: sufficient, none to spare, and few evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.errors import Failure
from dexport.exporter.smallest_repair import Verdict, smallest_repair

SITES = [f"blocks.{i}" for i in range(40)]
Rule = Callable[[frozenset[str]], bool]


def _evaluate(rule: Rule, seen: list[frozenset[str]] | None = None) -> Callable[[frozenset[str]], Verdict]:
    def evaluate(kept: frozenset[str]) -> Verdict:
        if seen is not None:
            seen.append(kept)
        return Verdict(rule(kept), f"{len(kept)} kept")

    return evaluate


subsets = st.sets(st.sampled_from(SITES), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(subsets)
def test_what_is_needed_is_found_with_few_evaluations(needed: set[str]) -> None:
    seen: list[frozenset[str]] = []
    repair = smallest_repair(SITES, _evaluate(lambda kept: needed <= kept, seen), most_evaluations=1000)
    assert set(repair.kept) == needed and repair.minimal and repair.verdict.good
    assert list(repair.kept) == sorted(repair.kept, key=SITES.index)
    assert repair.evaluations == len(seen) == len(set(seen)), "nothing is evaluated twice"
    assert len(seen) <= len(needed) * (2 * math.ceil(math.log2(len(SITES))) + 2) + 2


@settings(max_examples=60, deadline=None)
@given(st.lists(subsets, min_size=1, max_size=5))
def test_where_there_is_a_choice_none_of_the_found_can_be_left_out(groups: list[set[str]]) -> None:
    """Good is a set that holds at least one site of every group: many minimal sets exist."""

    def rule(kept: frozenset[str]) -> bool:
        return all(group & kept for group in groups)

    repair = smallest_repair(SITES, _evaluate(rule), most_evaluations=1000)
    assert repair.minimal and rule(frozenset(repair.kept))
    assert not any(rule(frozenset(repair.kept) - {site}) for site in repair.kept)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_where_more_precision_may_hurt_the_result_is_minimal_too(salt: int) -> None:
    def rule(kept: frozenset[str]) -> bool:
        return bool(kept) and (len(kept) == len(SITES) or hash((salt, tuple(sorted(int(site[7:]) for site in kept)))) % 3 == 0)

    repair = smallest_repair(SITES, _evaluate(rule), most_evaluations=10_000)
    assert repair.minimal and rule(frozenset(repair.kept))
    assert not any(rule(frozenset(repair.kept) - {site}) for site in repair.kept)


def test_the_most_sensitive_sites_are_tried_first() -> None:
    repair = smallest_repair(SITES, _evaluate(lambda kept: SITES[0] in kept))
    assert repair.kept == (SITES[0],) and repair.evaluations == 3


def test_nothing_to_repair() -> None:
    repair = smallest_repair(SITES, _evaluate(lambda kept: True))
    assert (repair.kept, repair.evaluations, repair.minimal) == ((), 1, True)


def test_when_evaluations_run_out_the_best_so_far_is_given() -> None:
    needed = set(SITES[10:20])
    repair = smallest_repair(SITES, _evaluate(lambda kept: needed <= kept), most_evaluations=9)
    assert not repair.minimal and repair.verdict.good and repair.evaluations == 9
    assert needed <= set(repair.kept) < set(SITES)


def test_what_cannot_be_repaired_says_so() -> None:
    with pytest.raises(Failure, match="repair: expected good output with all 40 layers in higher precision, got 40 kept"):
        smallest_repair(SITES, _evaluate(lambda kept: False))
