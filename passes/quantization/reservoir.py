"""A reservoir: a uniform sample, without replacement, of all the rows that were ever offered.

Every row gets a random key that depends on nothing but the seed and where the row comes from; the rows with the smallest keys are kept
(Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006, with equal weights). So the sample does not depend on the
order in which rows arrive, and two reservoirs over different rows merge into the one over all of them.

Keys are the numbers of Philox 4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), which the counter finds without
making those before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

NEVER = torch.iinfo(torch.int64).max
"""The key of an empty place."""


@dataclass(frozen=True)
class Origin:
    """Where rows come from: the batch of pictures, the how-manieth call within the batch and step, the step."""

    occasion: int
    call: int
    step: int


@dataclass
class Reservoir:
    """Up to R rows of C numbers.

    Attributes:
        seed: of the keys; 64 bits that no other reservoir of the run shares.
        keys: int64 [R], NEVER where the place is empty.
        rows: float32 [R, C].
        steps: the step of each, int64 [R].
    """

    seed: int
    keys: torch.Tensor
    rows: torch.Tensor
    steps: torch.Tensor

    def offer(self, origin: Origin, count: int, take: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Offers `count` rows; `take` gets the numbers of those that stay, int64 [n], and gives them, float32 [n, C]."""
        keys = row_keys(self.seed, origin, count)
        better = (keys < self.keys.max()).nonzero()[:, 0]
        if len(better):
            self._admit(keys[better], better, lambda chosen: (take(chosen), torch.full((len(chosen),), origin.step)))

    def absorb(self, other: Reservoir) -> None:
        """Takes in a reservoir over other rows."""
        filled = (other.keys != NEVER).nonzero()[:, 0]
        self._admit(other.keys[filled], filled, lambda chosen: (other.rows[chosen], other.steps[chosen]))

    def content(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and steps in the order of their keys, which is a random one."""
        order = self.keys.argsort()[: int((self.keys != NEVER).sum())]
        return self.rows[order], self.steps[order]

    def _admit(self, keys: torch.Tensor, names: torch.Tensor, take: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Keeps the smallest of the own and the given keys; only the rows that come in are fetched."""
        places = len(self.keys)
        stays = torch.zeros(places + len(keys), dtype=torch.bool)
        stays[torch.cat([self.keys, keys]).topk(places, largest=False).indices] = True
        entering = stays[places:].nonzero()[:, 0]
        if not len(entering):
            return
        free = (~stays[:places]).nonzero()[: len(entering), 0]
        self.rows[free], self.steps[free] = take(names[entering])
        self.keys[free] = keys[entering]


def empty_reservoir(seed: int, places: int, channels: int) -> Reservoir:
    """A reservoir for `places` rows."""
    keys = torch.full((places,), NEVER, dtype=torch.int64)
    return Reservoir(seed, keys, torch.zeros(places, channels), torch.zeros(places, dtype=torch.int64))


def row_keys(seed: int, origin: Origin, count: int) -> torch.Tensor:
    """The keys of `count` rows, int64, uniform in [0, 2^63)."""
    counter = [0, origin.occasion, origin.call, origin.step]  # the first word counts blocks of four numbers
    numbers = np.random.Philox(key=[seed, 0], counter=counter).random_raw(count)
    return torch.from_numpy((np.asarray(numbers) >> np.uint64(1)).astype(np.int64))
