"""Training by several processes: the process group, its collectives, and sharded weights.

`torchrun --nproc-per-node N -m mmtok train RECIPE` starts them. Each process has its share of a
step's rows, and gradients are summed, so that N processes make the step that one would make. They
hold the model in one of two ways:

    replicated  Every process holds all of it. After the backward pass the gradients are summed in a
                few flat buckets. This is not DistributedDataParallel, whose gradients are means
                over processes, and which must know the last micro-batch before its backward pass.
                It would overlap the sums with the backward pass, as FSDP2 does too.
    sharded     FSDP2: every process holds 1/N of the weights, gradients and optimiser, and gathers
                a block when it needs it. With several replicas (hybrid sharding) the processes form
                groups, say one per machine, and a group's N processes hold all of it together.

The processes of all machines must see the run folder under the same path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmtok.errors import UserError
from mmtok.nn.device import local_device, resolve_device, resolve_distributed_device

T = TypeVar("T")
STEP_TIMEOUT = timedelta(minutes=10)  # for collectives: a process without an answer by then is lost
# for work of rank 0 while the others wait (fitting, tokenising); they learn of its death at once
WORK_TIMEOUT = timedelta(days=7)
BUCKET = 2**25  # numbers per all-reduce, 128 MB in float32: more do not make it faster
LOST = (
    "another process of this training is gone or does not answer; the same command goes on from the"
    " last checkpoint"
)


@dataclass(frozen=True)
class Processes:
    """This process and its group: process `rank` of `world_size`.

    Attributes:
        rank: This process's number, from 0.
        world_size: How many processes there are.
        device: Where this process computes.
        wait_group: The Gloo group in which the others wait for the work of rank 0.
        background_group: Another one, for a thread that works while training goes on.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    wait_group: dist.ProcessGroup | None = None
    background_group: dist.ProcessGroup | None = None

    @property
    def is_rank0(self) -> bool:
        """Whether this is rank 0, the only one that writes files, the log and progress."""
        return self.rank == 0

    def on_rank0(self, work: Callable[[], T]) -> T | None:
        """Run `work` on rank 0 while the others wait; the result is None elsewhere.

        When it fails, rank 0 raises the error and the others raise SystemExit(2), so that there is
        one message.
        """
        if self.world_size == 1:
            return work()
        result = None
        error = None
        if self.is_rank0:
            try:
                result = work()
            except BaseException as raised:
                error = raised
        failed = torch.tensor([error is not None])
        try:
            dist.broadcast(failed, 0, group=self.wait_group)
        finally:
            if error is not None:
                raise error
        if failed.item():
            raise SystemExit(2)
        return result

    def on_each_rank(self, work: Callable[[], T]) -> T:
        """Run `work` on every rank, each its share, until all are done.

        When it fails anywhere, rank 0 raises an error and the others SystemExit(2), so that there
        is one message.
        """
        if self.world_size == 1:
            return work()
        result = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        said = self.all_said(None if error is None else str(error) or type(error).__name__)
        if not said:
            return cast(T, result)
        expected = error is None or isinstance(error, (UserError, OSError))
        if not expected or (error is not None and self.is_rank0):
            raise cast(BaseException, error)
        if self.is_rank0:
            raise UserError(said[0])
        raise SystemExit(2)

    def all_said(self, text: str | None) -> list[str]:
        """The texts of the processes that have something to say, by rank."""
        texts: list[str | None] = [text]
        if self.world_size > 1:
            texts *= self.world_size
            dist.all_gather_object(texts, text, group=self.wait_group)
        return [text for text in texts if text is not None]

    def in_background(self) -> Processes:
        """The same processes, for a thread beside the training."""
        return replace(self, wait_group=self.background_group)

    def all_reduce(self, *numbers: float) -> list[float]:
        """The sum of each number over the processes, in float64: integers are exact up to 2^53."""
        if self.world_size == 1:
            return list(numbers)
        x = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(x)
        return x.tolist()

    def all_gather(self, number: float) -> list[float]:
        """The number of each process, by rank."""
        by_rank = [0.0] * self.world_size
        by_rank[self.rank] = number
        return self.all_reduce(*by_rank)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its sum over the processes.

        Every parameter must have a gradient, in all processes.
        """
        if self.world_size == 1:
            return
        for bucket in _buckets([cast(Tensor, p.grad) for p in parameters]):
            flat = torch.cat([g.flatten() for g in bucket])
            dist.all_reduce(flat)
            sums = flat.split([g.numel() for g in bucket])
            torch._foreach_copy_(bucket, [x.view_as(g) for x, g in zip(sums, bucket, strict=True)])


def _buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Gradients in order, in groups of at most BUCKET numbers where there is more than one."""
    buckets: list[list[Tensor]] = [[]]
    size = 0
    for gradient in gradients:
        if buckets[-1] and size + gradient.numel() > BUCKET:
            buckets.append([])
            size = 0
        buckets[-1].append(gradient)
        size += gradient.numel()
    return buckets


SINGLE_PROCESS = Processes()
# True once init_process_group was called; earlier errors are identical on all ranks.
initialized = False


@contextmanager
def init_distributed(lost: str = LOST, device: str | None = None) -> Iterator[Processes]:
    """Initialise the process group that torchrun started, if it did, and destroy it at the end.

    device: by name, as `resolve_device` takes it. On GPUs each process has the one of its
    LOCAL_RANK, and NCCL; on the CPU Gloo. lost: what to say when another process is lost.

    Raises UserError for a device that is not there or of which this machine has too few,
    ConnectionError when another process is lost.
    """
    global initialized
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if world_size == 1 or "RANK" not in os.environ:
        yield Processes(device=resolve_device(device))
        return
    rank = int(os.environ["RANK"])
    shared = resolve_distributed_device(device)
    initialized = True
    own = local_device(shared, int(os.environ.get("LOCAL_RANK", rank)))
    backend = "gloo"
    if own.type == "cuda":
        torch.cuda.set_device(own)
        backend = "nccl"
    dist.init_process_group(backend, timeout=STEP_TIMEOUT)
    try:
        wait_group = dist.new_group(backend="gloo", timeout=WORK_TIMEOUT)
        background_group = dist.new_group(backend="gloo", timeout=WORK_TIMEOUT)
        yield Processes(rank, world_size, own, wait_group, background_group)
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise ConnectionError(f"{lost} ({str(error).splitlines()[0]})") from error
    finally:
        dist.destroy_process_group()


# ---- sharding


def check_replicas(processes: Processes, replicas: int) -> None:
    """Raise UserError unless the processes form so many groups of equal size."""
    n = processes.world_size
    if n > 1 and n % replicas:
        raise UserError(
            f"--train.replicas {replicas}: {n} processes cannot form {replicas} groups of equal"
            f" size; choose a number that divides {n}, such as that of the machines"
        )


def shard_model(
    lm: nn.Module,
    blocks: Sequence[nn.Module],
    processes: Processes,
    precision: str,
    replicas: int = 1,
) -> None:
    """Split the weights over the processes' devices, in place: block by block, then all the rest.

    replicas: in how many groups of successive ranks the processes hold a copy each.

    With "bf16" blocks are gathered in bfloat16, which halves traffic and memory; a block's norms,
    which otherwise stay in float32, are then rounded with it. Gradients are summed in float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    check_replicas(processes, replicas)
    # FSDP2 copies over the first axis and shards over the second
    sizes = (replicas, processes.world_size // replicas)
    mesh = dist.init_device_mesh(
        processes.device.type, sizes, mesh_dim_names=("replicas", "shards")
    )
    if replicas == 1:
        mesh = mesh["shards"]
    block_policy = MixedPrecisionPolicy()
    if precision == "bf16":
        block_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    policies = [*((block, block_policy) for block in blocks), (lm, MixedPrecisionPolicy())]
    for module, policy in policies:
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
        # sums, not means: the loss is already divided by the global count
        sharded.set_force_sum_reduction_for_comms(True)
        sharded.set_gradient_divide_factor(1.0)


def sum_after_last(lm: nn.Module, is_last: bool, replicas: int = 1) -> None:
    """Say before a backward pass of a sharded model whether it is the last one of its step.

    Gradients are summed in the last one only. Until then each process keeps complete gradients, 4
    bytes per parameter. With several replicas each group sums its own in every pass and keeps
    shares of them, and only what travels between the groups waits.
    """
    from torch.distributed.fsdp import FSDPModule

    sharded = cast(FSDPModule, lm)
    if replicas > 1:
        sharded.set_requires_all_reduce(is_last)
    else:
        sharded.set_requires_gradient_sync(is_last)
