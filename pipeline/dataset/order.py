"""Which sample comes at which step: a pure function of (seed, epoch, position).

So the state of the loader is one integer, resuming costs the same at step 10 and at step 10^6, and
the number of ranks or micro-batches may change on the way. The shuffle is a sort by a hash
(SplitMix64, Steele et al. 2014) and not a library's generator, whose stream may change.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def shuffled(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A permutation of `range(count)`, int64."""
    with np.errstate(over="ignore"):
        salt = _mix(np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(epoch))
        order: npt.NDArray[np.int64] = np.argsort(
            _mix(np.arange(count, dtype=np.uint64) + salt), kind="stable"
        )
        return order


def lot(seed: int, step: int, rank: int) -> int:
    """What seeds the random numbers of a step (dropout): a pure function, too, 64 bits.

    So no generator's state has to be saved, by any rank, and a step can be done again.
    """
    with np.errstate(over="ignore"):
        mixed = _mix(np.uint64(seed))
        for number in (step, rank):
            mixed = _mix(mixed + np.uint64(number))
    return int(mixed)


def _mix(x: Any) -> Any:
    """Of uint64, a number or an array."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Order:
    """The windows of every global batch.

    Args:
        count: Windows in an epoch.
        batch: Windows in a global batch.
        seed: Of the shuffle.
    """

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count, self.batch, self.seed = count, batch, seed
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def windows(self, step: int) -> list[int]:
        """The windows of a step (counted from 0), in order; an epoch may end within a batch."""
        found = []
        for sample in range(step * self.batch, (step + 1) * self.batch):
            epoch, place = divmod(sample, self.count)
            if epoch != self._epoch:
                self._epoch, self._permutation = epoch, shuffled(self.count, self.seed, epoch)
            found.append(int(self._permutation[place]))
        return found
