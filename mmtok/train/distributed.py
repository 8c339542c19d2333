"""Several processes that train one model: which one this is, and all that they say to each other.

`torchrun --nproc-per-node N -m mmtok train RECIPE` starts them; a process on its own answers every
question here by itself. Each has its share of a step's rows, and gradients are summed, so that N
processes make the step that one would make. They share the model in one of two ways:

    whole    every process holds all of it. After the backward pass the gradients are summed in a
             few flat buckets. Not by
             DistributedDataParallel: its gradients are means over processes, and it must know the
             last micro-batch before its backward pass; what it would gain is that summing overlaps
             with the backward pass, which FSDP2 does too.
    sharded  FSDP2: every process holds 1/N of the weights, gradients and optimiser, and gathers a
             block when it needs it.

The processes of all machines must see the run folder under the same path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmtok.nn.device import local_device, resolve_device, resolve_distributed_device

T = TypeVar("T")
STEP_TIMEOUT = timedelta(
    minutes=10
)  # for what all do at once: whoever has not answered by then is taken for lost
WORK_TIMEOUT = timedelta(
    days=7
)  # for what the first does while the others wait: fitting, tokenising; its death they learn of at once
BUCKET = (
    2**25
)  # numbers per all-reduce: 128 MB in float32, far beyond where size still changes the speed


@dataclass(frozen=True)
class Processes:
    """Process `rank` of `world`.

    wait_group: the group in which the others wait for the first one's work.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    wait_group: dist.ProcessGroup | None = None

    @property
    def is_rank0(self) -> bool:
        """It alone writes: files, the log, progress."""
        return self.rank == 0

    def on_rank0(self, work: Callable[[], T]) -> T | None:
        """Do `work` in the first process while the others wait for its end.

        When it fails, it raises and the others leave with SystemExit(2): one message is enough.
        """
        if self.world_size == 1:
            return work()
        result, error = None, None
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

    def all_reduce(self, *numbers: float) -> list[float]:
        """Sums over the processes, in float64: whole numbers stay exact up to 2^53."""
        if self.world_size == 1:
            return list(numbers)
        x = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(x)
        return x.tolist()

    def all_gather(self, number: float) -> list[float]:
        """The number that each process gave, by rank."""
        return self.all_reduce(
            *(number if rank == self.rank else 0 for rank in range(self.world_size))
        )

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes.

        Each parameter must have one, in all of them.
        """
        if self.world_size == 1:
            return
        buckets: list[list[Tensor]] = [[]]
        for gradient in [p.grad for p in parameters]:
            if buckets[-1] and sum(g.numel() for g in buckets[-1]) + gradient.numel() > BUCKET:
                buckets.append([])
            buckets[-1].append(gradient)
        for bucket in buckets:
            flat = torch.cat([g.flatten() for g in bucket])
            dist.all_reduce(flat)
            torch._foreach_copy_(
                bucket,
                [x.view_as(g) for x, g in zip(flat.split([g.numel() for g in bucket]), bucket)],
            )


SINGLE_PROCESS = Processes()
# whether this process has begun to meet others; before that they all do the same, and what is wrong
# is wrong for all
initialized = False


LOST = (
    "another process of this training is gone or does not answer; the same command goes on from the"
    " last checkpoint"
)


@contextmanager
def init_distributed(lost: str = LOST, device: str | None = None) -> Iterator[Processes]:
    """Meet the other processes that torchrun started, if it did; part from them at the end. lost:
    what to say where one is.

    device: by name, as `resolve_device` takes it. On GPUs each process has the one of its
    LOCAL_RANK, and NCCL; on the CPU Gloo. Raises UserError for a device that is not there, or of
    which there are too few on this machine, ConnectionError when another process is lost on the
    way.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1 or "RANK" not in os.environ:
        yield Processes(device=resolve_device(device))
        return
    global initialized
    rank, shared = int(os.environ["RANK"]), resolve_distributed_device(device)
    initialized = True
    home = local_device(shared, int(os.environ.get("LOCAL_RANK", rank)))
    if home.type == "cuda":
        torch.cuda.set_device(home)
    dist.init_process_group("nccl" if home.type == "cuda" else "gloo", timeout=STEP_TIMEOUT)
    try:
        yield Processes(rank, world, home, dist.new_group(backend="gloo", timeout=WORK_TIMEOUT))
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise ConnectionError(f"{lost} ({str(error).splitlines()[0]})") from error
    finally:
        dist.destroy_process_group()


# ---- sharding


def shard_model(
    lm: nn.Module, blocks: Sequence[nn.Module], processes: Processes, precision: str
) -> None:
    """Split the weights over the processes, in place: block by block, and all the rest as one.

    They move to the processes' devices.

    With "bf16" blocks are gathered in bfloat16, half of the traffic and of the memory; a block's
    norms, which otherwise stay in float32, are then rounded with them. Gradients are summed in
    float32 in any case.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = dist.init_device_mesh(processes.device.type, (processes.world_size,))
    half = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    policy = half if precision == "bf16" else MixedPrecisionPolicy()
    for module, how in [*((block, policy) for block in blocks), (lm, MixedPrecisionPolicy())]:
        fully_shard(module, mesh=mesh, mp_policy=how)
        module.set_force_sum_reduction_for_comms(
            True
        )  # the loss is divided by the global count already
        module.set_gradient_divide_factor(1.0)


def full_tensors(tensors: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """Named tensors with the sharded ones gathered, one after the other, in the first process's
    main memory; elsewhere they are left out.

    All processes must call it. What is not sharded is handed on as it is.
    """
    gathered = {}
    for name, x in tensors.items():
        if is_sharded(x):
            x = x.full_tensor()
            if not processes.is_rank0:
                continue
            x = x.cpu()
        gathered[name] = x
    return gathered


def shard_like(x: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` lies in this process: on its device, and only this process's rows
    where it is sharded.
    """
    if not is_sharded(like):
        return x.to(like.device)
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(
        like.shape, like.device_mesh, like.placements
    )
    mine = x[tuple(slice(a, a + n) for a, n in zip(offset, shape))].to(like.device)
    return DTensor.from_local(
        mine, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )


def is_sharded(x: Tensor) -> bool:
    """Whether it is a DTensor, asked without importing it."""
    return hasattr(x, "full_tensor")
