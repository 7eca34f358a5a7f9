"""The processes of a training job: one per GPU (per task on a CPU), each with the same model.

Each rank computes its share of the windows of a step. Then one plain all-reduce sums the gradients
of the trainable weights. Why not torch's DistributedDataParallel: its hooks reduce during the
backward pass, so a rank that runs out of memory there leaves the others waiting forever. It also
needs `no_sync` for every micro-batch but the last, and care with gradient checkpointing. Here the
loop is the same for one process and for many. The cost is that communication does not overlap
computation; for adapters that is a few megabytes per step.

Decisions that all ranks must share (a stop, a lack of memory, whether to skip a step) are computed
from the values of all ranks. Only rank 0 writes files; if that fails, all ranks fail.

Sharding (FSDP2, for weights that do not fit on one GPU; it does not work with int8) would replace
`all_reduce_gradients` by `fully_shard`, and checkpoint files by `torch.distributed.checkpoint`. The
rest would stay.
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
COLLECTIVE_TIMEOUT = timedelta(hours=2)  # the others wait while rank 0 saves or generates a sample
RENDEZVOUS_TIMEOUT = timedelta(minutes=30)
CONNECT_TIMEOUT = timedelta(seconds=5)  # of one attempt
BUCKET_ELEMENTS = 16_000_000  # 64 MB in fp32
RUN_AGAIN = "Run make pipeline again"


@dataclass(frozen=True)
class Ranks:
    """This process among `world_size` processes; by default it is the only one."""

    rank: int = 0
    world_size: int = 1

    def part_of_rank(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of a global batch."""
        return items[self.rank :: self.world_size]

    def all_sum(self, *values: float) -> list[float]:
        """Each value, summed over all ranks."""
        return self._all_reduce(values, "SUM")

    def all_max(self, *values: float) -> list[float]:
        """The maximum of each value over all ranks."""
        return self._all_reduce(values, "MAX")

    def _all_reduce(self, values: Sequence[float], operation: str) -> list[float]:
        if self.world_size == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=getattr(dist.ReduceOp, operation))
        return [float(value) for value in tensor]

    def all_reduce_gradients(self, parameters: Iterable[Any]) -> None:
        """Sum the gradients over all ranks, in fp32 and in buckets of 64 MB."""
        if self.world_size == 1:
            return
        bucket: list[Any] = []
        for gradient in (p.grad for p in parameters if p.grad is not None):
            bucket.append(gradient)
            if sum(g.numel() for g in bucket) > BUCKET_ELEMENTS:
                _all_reduce_bucket(bucket)
                bucket = []
        if bucket:
            _all_reduce_bucket(bucket)

    def run_on_rank0(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and return its result on all ranks; an error is raised on all."""
        if self.world_size == 1:
            return work()
        import torch
        import torch.distributed as dist

        outcome: list[Any] = [None, None]  # result, error
        cpu = torch.device("cpu")
        if not self.rank:
            try:
                outcome[0] = work()
            except BaseException as error:
                expected = isinstance(error, Failure | Interrupted)
                other = InputError(f"rank 0 failed: {type(error).__name__}", "See its log")
                outcome[1] = error if expected else other
                dist.broadcast_object_list(outcome, src=0, device=cpu)
                raise
        dist.broadcast_object_list(outcome, src=0, device=cpu)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def rank0_first(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0, which may prepare files, then on all other ranks."""
        results: list[T] = []
        self.run_on_rank0(lambda: results.append(work()))
        return results[0] if results else work()

    def check_stop(self, stop: Stop) -> None:
        """Raise `Interrupted` on all ranks if a stop was requested on any of them."""
        if self.world_size == 1:
            stop.check()
            return
        own_signal = int(stop.asked_by or 1) if stop.reason else 0
        (requested,) = self.all_max(own_signal)
        if requested:
            by = signal.Signals(int(requested)) if requested > 1 else None
            stop.set("another rank was asked to stop", by)
            stop.asked_by = by  # if ranks got different signals, all obey the same one
            stop.check()

    def close(self) -> None:
        """Leave the process group at the end."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


def _all_reduce_bucket(gradients: list[torch.Tensor]) -> None:
    import torch
    import torch.distributed as dist

    flat = torch.cat([gradient.flatten().float() for gradient in gradients])
    dist.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def join(ctx: Context, device: torch.device, done: Callable[[], bool]) -> Ranks | None:
    """Connect to the other ranks at `ctx.rendezvous` (host:port), on the host of rank 0.

    Args:
        ctx: Context of the train step.
        device: Gradients are sent by NCCL between GPUs; everything else is sent by gloo.
        done: Whether training is finished. Then rank 0 does not come, and this returns None.

    Raises:
        Interrupted: A stop was requested while waiting.
        InputError: The other ranks do not come.
    """
    if ctx.world_size == 1:
        return Ranks()
    import torch
    import torch.distributed as dist

    deadline = time.monotonic() + RENDEZVOUS_TIMEOUT.total_seconds()
    store = _connect(ctx, deadline, done)
    if store is None:
        return None
    _wait_for_all(ctx, store, deadline)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    ranks = Ranks(ctx.rank, ctx.world_size)
    try:
        dist.init_process_group(
            backend,
            store=store,
            rank=ctx.rank,
            world_size=ctx.world_size,
            timeout=COLLECTIVE_TIMEOUT,
        )
        # a barrier: rank 0 holds the store, and if it left now others could not connect
        ranks.all_sum(1)
    except RuntimeError as error:
        what = f"rank {ctx.rank} lost the other ranks while connecting: {error}"
        raise InputError(what.partition("\n")[0], RUN_AGAIN) from None
    return ranks


def _connect(ctx: Context, deadline: float, done: Callable[[], bool]) -> Any:
    """Connect to the store of rank 0; None if training is finished."""
    import torch.distributed as dist

    host, _, port = ctx.rendezvous.rpartition(":")
    while True:
        try:
            store = dist.TCPStore(
                host,
                int(port),
                None,
                ctx.rank == 0,
                timeout=CONNECT_TIMEOUT,
                wait_for_workers=False,
            )
            store.add("here", 1)
            return store
        except RuntimeError as error:
            if time.monotonic() > deadline or not ctx.rank:
                what = f"rank {ctx.rank} cannot connect to rank 0 at {ctx.rendezvous}: {error}"
                raise InputError(what.partition("\n")[0], RUN_AGAIN) from None
        ctx.stop.check()
        if ctx.rank and done():
            return None


def _wait_for_all(ctx: Context, store: Any, deadline: float) -> None:
    """Wait until all ranks are connected to the store."""
    while (connected := store.add("here", 0)) < ctx.world_size:
        ctx.stop.check()
        if time.monotonic() > deadline:
            raise InputError(f"only {connected} of {ctx.world_size} ranks connected", RUN_AGAIN)
        time.sleep(0.1)
    store.set_timeout(RENDEZVOUS_TIMEOUT)
