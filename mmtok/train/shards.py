"""Named tensors in safetensors files: complete, or as shards that all processes write.

Shards are written by `torch.distributed.checkpoint`: a file for each process that has something to
write, each number by one process only, and in a file's header where each shard begins. So no
process holds more than its own part. They are read for any number of processes, by each only what
it holds.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from mmtok.io.files import digest
from mmtok.io.tensor_stream import DTYPES
from mmtok.nn.sharded import copy_part, is_sharded, own_part
from mmtok.train.distributed import Processes

OFFSETS = "DCP_SHARDING_INFO"  # of a file's metadata, as torch.distributed.checkpoint names it
Tensors = Mapping[str, Mapping[str, Tensor]]  # stem -> name -> tensor


def to_write(tensors: Tensors, processes: Processes) -> dict[str, dict[str, Tensor]]:
    """The tensors of which this process writes what it holds.

    What several processes hold a copy of is dealt out among them by size, in the order of the
    names: a resumed process may hold its tensors in another order than the next one.
    """
    kept: dict[str, dict[str, Tensor]] = {}
    dealt: dict[int, list[int]] = {}  # how many copies -> bytes for each of their holders
    for stem, named in tensors.items():
        kept[stem] = {}
        for name, x in sorted(named.items()):
            n_copies, mine = _copies(x, processes)
            n_bytes = dealt.setdefault(n_copies, [0] * n_copies)
            writer = n_bytes.index(min(n_bytes))
            n_bytes[writer] += x.numel() * x.element_size()
            if writer == mine:
                kept[stem][name] = x
    return kept


def _copies(x: Tensor, processes: Processes) -> tuple[int, int]:
    """How many processes hold the same part of a tensor, and which of them this one is."""
    if not is_sharded(x):
        return processes.world_size, processes.rank
    mesh = cast(Any, x).device_mesh
    if mesh.ndim == 1:
        return 1, 0
    return mesh.size(0), mesh.get_local_rank(0)


def write_shards(
    folder: Path, tensors: Tensors, processes: Processes, names: Mapping[str, Collection[str]]
) -> dict[str, str]:
    """Write FOLDER/STEM/shard-*.safetensors for each stem; all processes must call it.

    names: of all tensors of each stem, of which `tensors` has those that this process writes.

    Returns file -> its SHA-256 on rank 0, and {} on the others. When it fails in any process, rank
    0 raises the error and the others SystemExit(2), so that there is one message.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    for stem, named in tensors.items():
        writer = checkpoint.HuggingFaceStorageWriter(str(folder / stem), save_distributed=True)
        try:
            written = checkpoint.save(
                dict(named), storage_writer=writer, process_group=processes.wait_group
            )
        except CheckpointException as error:
            if processes.is_rank0:
                raise _first_error(error.failures.values(), folder) from None
            raise SystemExit(2) from None
        lost = set(names[stem]).symmetric_difference(written.state_dict_metadata)
        if lost:
            raise RuntimeError(f"no process has written {min(lost)} of {folder / stem}")
    return _digests(folder, list(tensors), processes)


def _first_error(failures: Iterable[tuple[BaseException, Any]], folder: Path) -> BaseException:
    """What went wrong in one of the processes, naming the folder if it is of a file."""
    for error, _ in failures:
        if isinstance(error, OSError):
            return OSError(error.errno, error.strerror, error.filename or str(folder))
    return next(error for error, _ in failures)


def _digests(folder: Path, stems: Iterable[str], processes: Processes) -> dict[str, str]:
    """File -> SHA-256, on rank 0; every process reads what it has written."""
    pattern = f"shard-{processes.rank + 1:05d}-*.safetensors"
    mine = processes.on_each_rank(
        lambda: {
            str(path.relative_to(folder)): digest(path)
            for stem in stems
            for path in (folder / stem).glob(pattern)
        }
    )
    gathered: list[dict[str, str]] = [{} for _ in range(processes.world_size)]
    target = gathered if processes.is_rank0 else None
    dist.gather_object(mine, target, 0, group=processes.wait_group)
    return {name: found for by_rank in gathered for name, found in sorted(by_rank.items())}


def read_into(files: Iterable[Path], targets: Mapping[str, Tensor]) -> None:
    """Fill tensors from files that hold them, in place; of sharded ones this process's part.

    Raises ValueError where the files hold other tensors, or not all of their numbers.
    """
    filled = dict.fromkeys(targets, 0)
    for path in files:
        with safe_open(path, "pt") as file:
            begins = _begins(file)
            names = file.keys()
            for name in names:
                if name not in targets:
                    raise ValueError(f"{path.name} holds {name}, for which there is no place")
                filled[name] += copy_part(targets[name], file.get_slice(name), begins.get(name, ()))
    for name, x in targets.items():
        if filled[name] != own_part(x)[0].numel():
            raise ValueError(f"{name} is missing, or has another shape")


def read_complete(files: Iterable[Path]) -> dict[str, Tensor]:
    """The complete tensors that files hold, on the CPU."""
    files = list(files)
    if not any(_begins_of(path) for path in files):
        return {name: x for path in files for name, x in load_file(path).items()}
    tensors = {
        name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in _sizes(files).items()
    }
    read_into(files, tensors)
    return tensors


def names_in(files: Iterable[Path]) -> list[str]:
    """The names of the tensors that files hold, sorted."""
    return sorted(_sizes(files))


def _sizes(files: Iterable[Path]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name -> shape and type of the complete tensors, from the headers of the files."""
    sizes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            begins = _begins(file)
            names = file.keys()
            for name in names:
                shard = file.get_slice(name)
                shape = shard.get_shape()
                begin = begins.get(name, (0,) * len(shape))
                ends = [a + n for a, n in zip(begin, shape, strict=True)]
                if name in sizes:
                    ends = [max(pair) for pair in zip(ends, sizes[name][0], strict=True)]
                sizes[name] = tuple(ends), DTYPES[shard.get_dtype()]
    return sizes


def _begins_of(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, "pt") as file:
        return _begins(file)


def _begins(file: Any) -> dict[str, tuple[int, ...]]:
    """Name -> where a file's shard begins in the complete tensor; {} for complete ones."""
    offsets = json.loads((file.metadata() or {}).get(OFFSETS, "{}"))
    return {name: tuple(entry["saved_offsets"]) for name, entry in offsets.items()}
