"""Allocation: which treatment each layer gets, so that the harm is least and a budget holds.

    minimise  sum_i sum_c harm[i, c] x[i, c]      sum_c x[i, c] = 1 for every unit i      sum_i sum_c size[i, c] x[i, c] <= budget

with x in {0, 1}: a multiple-choice knapsack, solved to the proven optimum as an integer program by HiGHS, as MixDQ does with another solver
(arXiv 2405.17873, section 3.3). The harm of a layer is taken as independent of the others.

Where groups of layers are ranked by metrics that cannot be compared (metric-decoupled allocation: MixDQ, and ViDiT-Q, arXiv 2406.02540,
section 3.4), harms become shares of the worst that a group can suffer, times how much that matters by a measure that all groups have. Where
somebody can judge the whole, the budget is also divided between the groups in many ways, each group solved alone, and the best is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from dexport.errors import Failure, UserError

_SLACK = 2e-6
"""Twice what HiGHS may pass a constraint by, relative to the budget."""


@dataclass(frozen=True)
class Option:
    """What one choice does to one unit: harm (any unit, larger is worse) and size in the unit of the budget."""

    harm: float
    size: float


Options = Mapping[str, Mapping[str, Option]]
"""Unit -> choice -> option. A unit is a layer, or layers that must get the same choice."""


@dataclass(frozen=True)
class Budget:
    """The most that all units together may take.

    Attributes:
        limit: in bits, or in milliseconds.
        parameters: number of weights, to speak of bits per weight.
        fixed: size of what nobody chooses, included in `limit`.
    """

    limit: float
    unit: Literal["bits", "ms"] = "bits"
    parameters: int = 0
    fixed: float = 0.0

    def words(self, size: float) -> str:
        """A size as a person says it."""
        if self.unit == "ms":
            # Four digits, rounded up: who gives what the error says is enough must not meet the error again.
            scale = 10.0 ** (3 - math.floor(math.log10(size))) if size > 0 else 1.0
            return f"{math.ceil(size * scale) / scale:.6g} ms"
        bits = f" ({size / self.parameters:.4f} bits per weight)" if self.parameters else ""
        return f"{math.ceil(size / 8)} bytes{bits}"


@dataclass(frozen=True)
class Allocation:
    """Unit -> choice; the harm of all units together, and their size with what is fixed."""

    choices: Mapping[str, str]
    harm: float
    size: float


def smallest(options: Options, budget: Budget) -> float:
    """The least size that any allocation has."""
    return budget.fixed + sum(min(o.size for o in choices.values()) for choices in options.values())


def allocate(options: Options, budget: Budget, where: str = "budget") -> Allocation:
    """The allocation of least harm within a budget.

    Args:
        options: every unit has at least one; harms are finite and not negative.
        where: what set the budget, for the error.

    Raises:
        UserError: nothing fits; says what the smallest possible is.
        Failure: the solver gave up.
    """
    if (least := smallest(options, budget)) > budget.limit:
        fix = "give at least that, or add a choice with fewer bits to the recipe"
        raise UserError(where, expected=f"at least {budget.words(least)}, the smallest possible", got=budget.words(budget.limit), fix=fix)
    if not options:
        return Allocation({}, 0.0, budget.fixed)
    limit = budget.limit - budget.fixed
    found = _solved(options, limit)
    while (over := found.size - limit) > 0:  # the solver's tolerance was used
        found = _solved(options, limit - over - _SLACK * limit)
    return Allocation(found.choices, found.harm, found.size + budget.fixed)


def _solved(options: Options, limit: float) -> Allocation:
    pairs = [(unit, choice) for unit, choices in options.items() for choice in choices]
    row = {unit: index for index, unit in enumerate(options)}
    harms, sizes = (np.array([getattr(options[u][c], name) for u, c in pairs], np.float64) for name in ("harm", "size"))
    once = np.zeros((len(row), len(pairs)))
    once[[row[unit] for unit, _ in pairs], np.arange(len(pairs))] = 1
    scale = max(limit, float(sizes.max()), 1e-30)
    within = [LinearConstraint(once, 1, 1), LinearConstraint(sizes[None] / scale, -np.inf, limit / scale)]
    # Harms span many orders of magnitude; the solver compares them absolutely.
    whole, exact = np.ones(len(pairs)), {"mip_rel_gap": 0.0}
    result = milp(harms / max(float(harms.max()), 1e-300), integrality=whole, bounds=Bounds(0, 1), constraints=within, options=exact)
    if result.x is None:
        raise Failure("allocation", expected="a solution", got=str(result.message), fix="give a budget a little larger")
    chosen = {unit: choice for (unit, choice), x in zip(pairs, result.x) if x > 0.5}
    return _total(options, chosen)


def _total(options: Options, chosen: Mapping[str, str]) -> Allocation:
    picked = [options[unit][choice] for unit, choice in chosen.items()]
    return Allocation(chosen, math.fsum(o.harm for o in picked), math.fsum(o.size for o in picked))


def normalised(options: Options, importance: float = 1.0) -> Options:
    """The same with harms as shares of what the most harmful choices do together, times `importance`: several groups can be added."""
    most = math.fsum(max(o.harm for o in choices.values()) for choices in options.values())
    factor = importance / most if most else 0.0
    return {unit: {c: Option(o.harm * factor, o.size) for c, o in choices.items()} for unit, choices in options.items()}


def allocate_groups(
    groups: Mapping[str, Options],
    budget: Budget,
    importance: Mapping[str, float],
    judge: Callable[[Allocation], float] | None = None,
    parts: int = 8,
    where: str = "budget",
) -> Allocation:
    """Allocation where every group has a metric of its own.

    Args:
        groups: name -> options; a unit is in one group only.
        importance: name -> the worst that the group can suffer, by one measure for all groups.
        judge: how bad an allocation of everything is; called once per different one. None adds harms, each as its share of the group's
            worst times its importance.
        parts: into how many parts what is left above the smallest sizes is divided; every way of giving them to the groups is tried, and
            what a group does not take goes to the next.

    Raises:
        UserError: nothing fits.
    """
    scaled = {name: normalised(options, importance[name]) for name, options in groups.items() if options}
    joint: Options = {unit: choices for options in scaled.values() for unit, choices in options.items()}
    together = allocate(joint, budget, where)
    if judge is None or len(scaled) < 2:
        return together
    known = {tuple(sorted(together.choices.items())): (judge(together), together)}
    for split in _splits(scaled, budget, parts):
        trial = _by_group(scaled, split, budget)
        key = tuple(sorted(trial.choices.items()))
        if key not in known and trial.size <= budget.limit:
            known[key] = (judge(trial), trial)
    return min(known.values(), key=lambda entry: entry[0])[1]


def _splits(groups: Mapping[str, Options], budget: Budget, parts: int) -> Iterator[list[float]]:
    """Every way to give what is left above the smallest sizes to the groups, in parts."""
    least = [smallest(options, Budget(0.0)) for options in groups.values()]
    spare = budget.limit - budget.fixed - sum(least)
    slots = parts + len(least) - 1
    for bars in combinations(range(slots), len(least) - 1):
        edges = (-1, *bars, slots)
        yield [size + spare * (end - start - 1) / parts for size, start, end in zip(least, edges, edges[1:])]


def _by_group(groups: Mapping[str, Options], split: Sequence[float], budget: Budget) -> Allocation:
    """Each group within its share; what one leaves, the next may take."""
    chosen: dict[str, str] = {}
    harm, size, left = 0.0, budget.fixed, 0.0
    for options, share in zip(groups.values(), split):
        # Shares are sums of fractions: the smallest allocation must fit whatever the rounding.
        own = Budget(max(share + left, smallest(options, Budget(0.0))), budget.unit)
        found = allocate(options, own)
        chosen |= found.choices
        harm, size, left = harm + found.harm, size + found.size, max(own.limit - found.size, 0.0)
    return Allocation(chosen, harm, size)
