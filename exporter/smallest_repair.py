"""Which few layers must stay in higher precision? A search with few evaluations, as each one samples pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dexport.errors import Failure

MOST_EVALUATIONS = 64


@dataclass(frozen=True)
class Verdict:
    """Whether a choice of layers repairs the output, and by which figures, such as "PSNR 31.2 dB"."""

    good: bool
    detail: str


@dataclass(frozen=True)
class Repair:
    """What was found.

    Attributes:
        kept: the layers to keep, in the order they were given; empty if nothing has to be repaired.
        verdict: of exactly these.
        evaluations: how many choices were tried.
        minimal: leaving out any one of them was tried and does not do; False if the evaluations ran out first.
    """

    kept: tuple[str, ...]
    verdict: Verdict
    evaluations: int
    minimal: bool


Evaluate = Callable[[frozenset[str]], Verdict]


def smallest_repair(sites: Sequence[str], evaluate: Evaluate, *, most_evaluations: int = MOST_EVALUATIONS) -> Repair:
    """A set of sites whose higher precision repairs the output, from which none can be left out.

    Where more precision never hurts, k layers out of n take about 2 k log2(n) evaluations: the shortest sufficient run of
    the most sensitive sites is found by galloping and bisection; its last site is needed, and the search goes on before it,
    with that one given (the idea of QuickXplain: Junker 2004; 1-minimal as in delta debugging: Zeller and Hildebrandt,
    doi 10.1109/32.988498). A last pass tries to leave out each, which also holds where more precision may hurt.

    Args:
        sites: all that may be kept, the most sensitive first.
        evaluate: judges a choice of sites to keep.
        most_evaluations: stop after so many, at least 2.

    Raises:
        Failure: even keeping all of them does not repair the output.
    """
    judge = _Judge(evaluate, most_evaluations)
    everything = frozenset(sites)
    if judge.good(frozenset()):
        return judge.repair(sites, minimal=True)
    if not judge.good(everything):
        detail = judge.verdicts[everything].detail
        fix = "the fault lies elsewhere: check the model and the other components"
        raise Failure("repair", expected=f"good output with all {len(sites)} layers in higher precision", got=detail, fix=fix)
    try:
        needed = _needed(sites, judge)
        _leave_out(needed, judge)
    except _Spent:
        return judge.repair(sites, minimal=False)
    return judge.repair(sites, minimal=True)


class _Spent(Exception):
    """No evaluations are left."""


class _Judge:
    """Evaluates every choice once and remembers the smallest good one."""

    def __init__(self, evaluate: Evaluate, most: int) -> None:
        self.verdicts: dict[frozenset[str], Verdict] = {}
        self._evaluate, self._most = evaluate, most
        self._best: frozenset[str] | None = None

    def good(self, kept: frozenset[str]) -> bool:
        if kept not in self.verdicts:
            if len(self.verdicts) >= self._most:
                raise _Spent
            self.verdicts[kept] = self._evaluate(kept)
        if self.verdicts[kept].good and (self._best is None or len(kept) < len(self._best)):
            self._best = kept
        return self.verdicts[kept].good

    def repair(self, sites: Sequence[str], *, minimal: bool) -> Repair:
        assert self._best is not None
        kept = tuple(site for site in sites if site in self._best)
        return Repair(kept, self.verdicts[self._best], len(self.verdicts), minimal)


def _needed(sites: Sequence[str], judge: _Judge) -> set[str]:
    """Sites that together are good. At every turn the found ones and all of `pool` are good, the found ones alone are not."""
    needed: set[str] = set()
    pool = list(sites)
    while not judge.good(frozenset(needed)):
        length = _shortest(needed, pool, judge)
        needed.add(pool[length - 1])
        pool = pool[: length - 1]
    return needed


def _shortest(needed: set[str], pool: Sequence[str], judge: _Judge) -> int:
    """A length at which the first sites of `pool`, with the needed ones, are good, while one less is not."""
    bad, good = 0, len(pool)
    length = 1
    while length < good:
        if judge.good(frozenset(needed.union(pool[:length]))):
            good = length
        else:
            bad, length = length, 2 * length
    while good - bad > 1:
        middle = (bad + good) // 2
        if judge.good(frozenset(needed.union(pool[:middle]))):
            good = middle
        else:
            bad = middle
    return good


def _leave_out(needed: set[str], judge: _Judge) -> None:
    """Leaves out what can be, until nothing can."""
    while (spare := next((site for site in sorted(needed) if judge.good(frozenset(needed - {site}))), None)) is not None:
        needed.remove(spare)
