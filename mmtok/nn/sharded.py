"""Tensors of which each process holds a part: DTensors, as FSDP2 makes them, and others alike."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def is_sharded(x: Tensor) -> bool:
    """Whether it is a DTensor, without importing that class."""
    return hasattr(x, "full_tensor")


def full_tensor(x: Tensor) -> Tensor:
    """A sharded tensor gathered on every process; any other as it is."""
    if is_sharded(x):
        return cast(Any, x).full_tensor()
    return x


def own_part(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """What this process holds of a tensor, and where in the complete one it begins.

    The part shares its memory with x. Of a tensor that is not sharded it is all.
    """
    if not is_sharded(x):
        return x.detach(), (0,) * x.dim()
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded = cast(Any, x.detach())
    mesh = sharded.device_mesh
    _, offset = compute_local_shape_and_global_offset(x.shape, mesh, sharded.placements)
    return sharded.to_local(), tuple(offset)


def copy_part(target: Tensor, source: Any, begin: tuple[int, ...] = ()) -> int:
    """Copy into a tensor, or into this process's part of it; returns how many numbers.

    source: a block of the complete tensor. It begins at `begin`, by default at the first number.
    It is a tensor or a slice of a safetensors file, of which only what is needed is read.
    """
    part, offset = own_part(target)
    if part.dim() == 0:
        part.copy_(source[...])
        return 1
    size = source.shape if isinstance(source, Tensor) else source.get_shape()
    begin = begin or (0,) * part.dim()
    into = []
    out_of = []
    for n_part, first_part, n_source, first in zip(part.shape, offset, size, begin, strict=True):
        low = max(first_part, first)
        high = max(low, min(first_part + n_part, first + n_source))
        into.append(slice(low - first_part, high - first_part))
        out_of.append(slice(low - first, high - first))
    hole = part[tuple(into)]
    if hole.numel():
        hole.copy_(source[tuple(out_of)])
    return hole.numel()


def shard_like(x: Tensor, like: Tensor) -> Tensor:
    """A full tensor on the device of `like`; where that is sharded, this process's shard of it."""
    if not is_sharded(like):
        return x.to(like.device)
    shard = torch.empty_like(like, dtype=x.dtype)
    copy_part(shard, x)
    return shard
