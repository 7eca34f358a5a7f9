"""The order of training samples: a pure function of (seed, epoch, position).

So the state of the data loader is one integer. Resuming costs the same at step 10 and at step 10^6,
and the number of ranks or micro-batches may change between restarts. The shuffle sorts by a hash
(SplitMix64, Steele et al. 2014), because a library's generator may change between versions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def permutation(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A permutation of `range(count)`, int64."""
    with np.errstate(over="ignore"):
        salt = _mix(np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(epoch))
        order: npt.NDArray[np.int64] = np.argsort(
            _mix(np.arange(count, dtype=np.uint64) + salt), kind="stable"
        )
        return order


def step_seed(seed: int, step: int, rank: int) -> int:
    """The 64-bit seed of the random numbers (dropout) of one step on one rank.

    So no generator state has to be saved, and a step can be repeated.
    """
    with np.errstate(over="ignore"):
        mixed = _mix(np.uint64(seed))
        for number in (step, rank):
            mixed = _mix(mixed + np.uint64(number))
    return int(mixed)


def _mix(x: Any) -> Any:
    """SplitMix64 of a uint64 or of an array of them."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class WindowSampler:
    """The windows of each global batch.

    Args:
        count: Windows in an epoch.
        batch_size: Windows in a global batch.
        seed: Seed of the shuffle.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def windows(self, step: int) -> list[int]:
        """The `batch_size` window indices of a step (from 0). An epoch may end within a batch."""
        windows = []
        for sample in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, position = divmod(sample, self.count)
            if epoch != self._epoch:
                self._epoch, self._permutation = epoch, permutation(self.count, self.seed, epoch)
            windows.append(int(self._permutation[position]))
        return windows
