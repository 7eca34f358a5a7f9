"""The processes of one training: one a GPU (a task on a CPU), all with the same model.

Each rank computes its share of a step's windows, then the gradients of the weights that learn are
summed, once a step and by a plain all-reduce. Why not torch's DistributedDataParallel: its hooks
reduce while the backward pass runs, so a rank that runs out of memory in it leaves the others
waiting for ever, and it wants `no_sync` for every micro-batch but the last and care with gradient
checkpointing. Here the loop is the same for one process and for many. The price is that sending
does not overlap computing; for adapters that is a few megabytes a step.

What ranks must not differ in (a stop, a lack of memory, the verdict on a step) is decided by
everybody's values; what is written is written by rank 0, and its failures are everybody's.

Sharding (FSDP2, for weights that do not fit one GPU, and never with int8: it fails there) would
replace `reduce` by what `fully_shard` does, and files by `torch.distributed.checkpoint`; the rest
of this stays.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.core.errors import Failure, InputError, Interrupted
from pipeline.core.stage import Context
from pipeline.core.stop import Stop

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # while rank 0 saves or writes a sample, the others wait
MEETING = timedelta(minutes=30)
TRY = timedelta(seconds=5)
BUCKET = 16_000_000


@dataclass(frozen=True)
class Ranks:
    """One process among `world` of them; the default is alone."""

    rank: int = 0
    world: int = 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The part of a global batch that is this rank's."""
        return items[self.rank :: self.world]

    def total(self, *values: float) -> list[float]:
        """Each value summed over all ranks."""
        return self._combine(values, "SUM")

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over all ranks."""
        return self._combine(values, "MAX")

    def _combine(self, values: Sequence[float], how: str) -> list[float]:
        if self.world == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        together = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(together, op=getattr(dist.ReduceOp, how))
        return [float(value) for value in together]

    def reduce(self, parameters: Iterable[Any]) -> None:
        """Sum the gradients over all ranks, in fp32 and in buckets of 64 MB."""
        if self.world == 1:
            return
        bucket: list[Any] = []
        for gradient in (p.grad for p in parameters if p.grad is not None):
            bucket.append(gradient)
            if sum(g.numel() for g in bucket) > BUCKET:
                _reduce(bucket)
                bucket = []
        if bucket:
            _reduce(bucket)

    def lead(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, everywhere; as it fails there, it fails everywhere."""
        if self.world == 1:
            return work()
        import torch
        import torch.distributed as dist

        outcome: list[Any] = [None, None]
        if not self.rank:
            try:
                outcome[0] = work()
            except BaseException as error:
                told = isinstance(error, Failure | Interrupted)
                lost = InputError(f"rank 0 failed: {type(error).__name__}", "see its log")
                outcome[1] = error if told else lost
                dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
                raise
        dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def in_turn(self, work: Callable[[], T]) -> T:
        """`work` on rank 0, which may prepare files, then on all others."""
        found: list[T] = []
        self.lead(lambda: found.append(work()))
        return found[0] if found else work()

    def check(self, stop: Stop) -> None:
        """Raise `Interrupted` on all ranks if a stop was asked for on any of them."""
        if self.world == 1:
            stop.check()
            return
        mine = int(stop.asked_by or 1) if stop.reason else 0
        (told,) = self.largest(mine)
        if told:
            by = signal.Signals(int(told)) if told > 1 else None
            stop.set("another rank was asked to stop", by)
            stop.asked_by = by  # of two signals all ranks obey the same
            stop.check()

    def leave(self) -> None:
        """Part, when all is done."""
        if self.world > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


def _reduce(gradients: list[torch.Tensor]) -> None:
    import torch
    import torch.distributed as dist

    flat = torch.cat([gradient.flatten().float() for gradient in gradients])
    dist.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def join(ctx: Context, device: torch.device, done: Callable[[], bool]) -> Ranks | None:
    """Meet the other ranks at `ctx.rendezvous` (host:port), which is on the host of rank 0.

    Args:
        ctx: Of the training.
        device: Gradients travel between GPUs by nccl, between CPUs by gloo; all else by gloo.
        done: Whether there is nothing to do: then rank 0 does not come, and this gives None.

    Raises:
        Interrupted: A stop was asked for while waiting.
        InputError: The others do not come.
    """
    if ctx.world == 1:
        return Ranks()
    import torch
    import torch.distributed as dist

    host, _, port = ctx.rendezvous.rpartition(":")
    end, store = time.monotonic() + MEETING.total_seconds(), None
    while store is None:
        try:
            store = dist.TCPStore(
                host, int(port), None, ctx.rank == 0, timeout=TRY, wait_for_workers=False
            )
            store.add("here", 1)
        except RuntimeError as error:
            if time.monotonic() > end or not ctx.rank:
                what = f"rank {ctx.rank} cannot meet the others at {ctx.rendezvous}: {error}"
                raise InputError(what.partition("\n")[0], "run make pipeline again") from None
        ctx.stop.check()
        if ctx.rank and store is None and done():
            return None
    while store.add("here", 0) < ctx.world:
        ctx.stop.check()
        if time.monotonic() > end:
            raise InputError(f"of {ctx.world} ranks some did not come", "run make pipeline again")
        time.sleep(0.1)
    store.set_timeout(MEETING)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    ranks = Ranks(ctx.rank, ctx.world)
    try:
        dist.init_process_group(
            backend, store=store, rank=ctx.rank, world_size=ctx.world, timeout=PATIENCE
        )
        ranks.total(1)  # rank 0 holds the store: were it to part now, others could not connect
    except RuntimeError as error:
        what = f"rank {ctx.rank} lost the others while they met: {error}"
        raise InputError(what.partition("\n")[0], "run make pipeline again") from None
    return ranks
