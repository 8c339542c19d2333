"""Checkpoints: a folder per step, written whole or not at all.

Each is written under a temporary name and then renamed, so that a crash leaves those before it.

    checkpoints/step-000400/  weights.safetensors  optimizer.safetensors  [ema.safetensors]
                              state.json

There are no pickles. state.json holds the step and a SHA-256 of every file and of itself, so that a
damaged checkpoint is detected, named and skipped for the one before it. No generator state is
stored: every random number is a function of (seed, step).

Several processes write a folder of shards in the place of each file, see shards.py: each process
its part, so that no process needs the memory for all. Both can be read by any number of processes,
sharded or not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mmtok.errors import UserError
from mmtok.io.filenames import inside
from mmtok.io.files import digest, save_tensors
from mmtok.io.serialize import Within, check_known
from mmtok.io.strict_json import read_json
from mmtok.model.origin import Origin
from mmtok.train.distributed import SINGLE_PROCESS, Processes
from mmtok.train.shards import Tensors, read_complete, write_shards

KEEP = 2
N_LISTED = 10  # steps that a message names at most
WEIGHTS = ("weights", "ema")  # the files that a finished run is made from
# what reading a damaged checkpoint raises
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError)
STEP = Annotated[int, Within(0)]
STATE = {
    "step": STEP,
    "files": dict[str, str],
    "sha256": str,
    "vocabulary": str,
    "precision": str,
    "planned": tuple[tuple[STEP, STEP], ...],
    "window": tuple[dict[str, Any], ...],
    "start": Origin,
}
NEEDED = ("step", "files", "sha256")  # what every state.json has


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that training needs to resume.

    tensors: file stem -> name -> tensor. state: small JSON values, with `step` at least.
    names: of all tensors of each stem, where `tensors` has only those that this process writes.
    """

    tensors: Tensors
    state: dict
    names: Mapping[str, Collection[str]] | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """A sound checkpoint whose tensors are not read yet.

    files: file stem -> the files that hold its tensors. state: as of `Checkpoint`.
    """

    files: Mapping[str, Sequence[Path]]
    state: dict


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    keep: int = KEEP,
    processes: Processes = SINGLE_PROCESS,
) -> Path:
    """Write FOLDER/step-N, whole or not at all; then remove all but the newest `keep`.

    Of several processes each writes its part of the tensors, and all must call it.
    """
    step = checkpoint.state["step"]
    target = folder / _name(step)
    temporary = folder / f".{target.name}.tmp"

    def begin() -> None:
        tidy(folder, step, keep)
        temporary.mkdir(parents=True)

    def end() -> None:
        _publish(temporary, target, {**checkpoint.state, "files": digests})
        tidy(folder, step, keep)

    try:
        processes.on_rank0(begin)
        if processes.world_size == 1:
            digests = _write_files(temporary, checkpoint.tensors)
        else:
            names = checkpoint.names or checkpoint.tensors
            digests = write_shards(temporary, checkpoint.tensors, processes, names)
        processes.on_rank0(end)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def _write_files(folder: Path, tensors: Tensors) -> dict[str, str]:
    """Write FOLDER/STEM.safetensors for each stem; returns file -> its SHA-256."""
    digests = {}
    for stem, named in tensors.items():
        path = folder / f"{stem}.safetensors"
        save_tensors(path, named)
        digests[path.name] = digest(path)
    return digests


def _publish(temporary: Path, target: Path, state: dict) -> None:
    """Write state.json beside the tensors, and give the folder its name."""
    text = json.dumps({**state, "sha256": _digest_of(state)}, indent=1)
    (temporary / "state.json").write_text(text)
    for path in temporary.iterdir():
        _sync(path)
    if target.exists():  # the same step again, after a resume from an older checkpoint
        shutil.rmtree(target)
    os.rename(temporary, target)
    _sync(target.parent)


def tidy(folder: Path, step: int, keep: int = KEEP) -> None:
    """Remove half-written checkpoints, and those up to `step` but for the newest `keep`.

    Later ones, which training skipped as damaged, are replaced when it reaches their steps.
    """
    for left in folder.glob(".step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    passed = [path for path in _steps(folder) if _order(path) <= _order(folder / _name(step))]
    for old in passed[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(folder: Path, processes: Processes = SINGLE_PROCESS) -> Found | None:
    """The newest sound checkpoint, or None when there is none yet; all processes must call it.

    Damaged ones are skipped with a warning. Each process reads some of the files for their digests.
    Raises UserError when there are checkpoints but none can be read, or when the processes see
    different ones.
    """
    steps = _steps(folder)
    newest = -1
    if steps:
        newest = int(steps[-1].name.removeprefix("step-"))
    if len(set(processes.all_gather(newest))) > 1:
        raise UserError(
            f"the processes see different checkpoints in {folder}: it must be on a file system that"
            " all of them share"
        )
    for path in reversed(steps):
        found = damage = None
        try:
            found = _find(path, processes)
        except DAMAGE as error:
            damage = _reason(error)
        said = processes.all_said(damage)
        if found is not None and not said:
            return found
        if processes.is_rank0:
            _pass_over(path, said[0])
    if steps:
        raise UserError(
            f"none of the checkpoints in {folder} can be read; remove the folder to train from the"
            " start"
        )
    return None


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest sound checkpoint with its tensors, as `find_checkpoint` finds it."""
    found = find_checkpoint(folder)
    if found is None:
        return None
    return _loaded(found)


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint to resume from; its tensors are not looked at."""
    return precision_of(folder) is not None


def load_weights(folder: Path, step: int | None = None) -> Checkpoint | None:
    """As `load_checkpoint`, without the optimiser. step: of a checkpoint other than the newest.

    Another process may be training: when it removes the checkpoint that is being read, a newer one
    is read. Raises UserError when `step` has no sound checkpoint; it lists those there are.
    """
    if step is not None:
        return _of_step(folder, step)
    tried: set[Path] = set()
    while left := [path for path in _steps(folder) if path not in tried]:
        path = left[-1]
        tried.add(path)
        try:
            return _read(path, WEIGHTS)
        except DAMAGE as error:
            if not any(_order(other) > _order(path) for other in set(_steps(folder)) - tried):
                _pass_over(path, _reason(error))
    if tried:
        raise UserError(
            f"none of the checkpoints in {folder} can be read; `mmtok train` on the run's recipe"
            " says what to do"
        )
    return None


def _of_step(folder: Path, step: int) -> Checkpoint:
    path = folder / _name(step)
    try:
        return _read(path, WEIGHTS)
    except DAMAGE as error:
        there = [
            str(int(other.name.removeprefix("step-"))) for other in _steps(folder) if other != path
        ]
        more = f" (the newest {N_LISTED} of {len(there)})" if len(there) > N_LISTED else ""
        others = "no other one stands"
        if there:
            others = f"those of these steps stand: {', '.join(there[-N_LISTED:])}{more}"
        what = f"{folder} holds no checkpoint of that step"
        if path.exists():
            what = f"{path} is damaged ({_reason(error)})"
        raise UserError(f"--checkpoint {step}: {what}; {others}") from None


def _pass_over(path: Path, damage: str) -> None:
    warnings.warn(f"checkpoint {path} is damaged ({damage}); using the one before it", stacklevel=3)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def planned_steps(folder: Path) -> list[list[int]]:
    """`Trainer.planned` of the newest sound checkpoint; [] where there is none."""
    for path in reversed(_steps(folder)):
        try:
            return _state(path)["planned"]
        except DAMAGE:
            continue
    return []


def kept_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights that a finished run keeps: the moving average where there is one."""
    return {**checkpoint.tensors["weights"], **checkpoint.tensors.get("ema", {})}


def precision_of(folder: Path) -> str | None:
    """The precision of the training that wrote the newest sound checkpoint; None without one."""
    for path in reversed(_steps(folder)):
        try:
            return _state(path)["precision"]
        except (OSError, ValueError, LookupError, TypeError):
            continue  # damaged; loading warns of it
    return None


def _read(path: Path, stems: Collection[str]) -> Checkpoint:
    """Read the files of these stems; raises one of DAMAGE if damaged."""
    return _loaded(_find(path, stems=stems))


def _loaded(found: Found) -> Checkpoint:
    return Checkpoint(
        {stem: read_complete(files) for stem, files in found.files.items()}, found.state
    )


def _find(
    path: Path, processes: Processes = SINGLE_PROCESS, stems: Collection[str] | None = None
) -> Found:
    """A checkpoint, or only its files of these stems; raises one of DAMAGE if damaged.

    Of several processes each compares the digests of some of the files.
    """
    state = _state(path)
    if state.pop("sha256") != _digest_of(state):
        raise ValueError("state.json is not what was written")
    files: dict[str, list[Path]] = {}
    for i, (name, written) in enumerate(state.pop("files").items()):
        stem = Path(name).parts[0].removesuffix(".safetensors")
        if stems is not None and stem not in stems:
            continue
        file = inside(path, name)
        is_mine = i % processes.world_size == processes.rank
        if is_mine and digest(file) != written:
            raise ValueError(f"{name} is not what was written")
        files.setdefault(stem, []).append(file)
    return Found(files, state)


def _state(path: Path) -> dict[str, Any]:
    """The state.json of a checkpoint; raises UserError for fields that are not of their type."""
    state = read_json(path / "state.json", nan=True)
    check_known(state, STATE, str(path / "state.json"), NEEDED)
    return state


def _steps(folder: Path) -> list[Path]:
    """The folders of the checkpoints, the oldest first."""
    steps = [p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdecimal()]
    return sorted(steps, key=_order)


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _order(path: Path) -> tuple[int, str]:
    return len(path.name), path.name  # past a million steps, names grow longer


def _digest_of(state: Mapping) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> dict[str, Tensor]:
    """An optimiser's state as named tensors: `<parameter>:<entry>`."""
    return {
        f"{names[p]}:{entry}": value
        for p, entries in optimizer.state.items()
        for entry, value in entries.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    tensors: Mapping[str, Tensor],
) -> None:
    """The inverse of `optimizer_tensors`."""
    for key, x in empty_state(optimizer, names, tensors).items():
        x.copy_(tensors[key])


def empty_state(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], keys: Iterable[str]
) -> dict[str, Tensor]:
    """Make an optimiser's state, of zeros, for what `optimizer_tensors` gave; returns it alike.

    Raises ValueError for a parameter that the optimiser does not have.
    """
    parameters = {name: p for p, name in names.items()}
    for key in keys:
        name, entry = key.rsplit(":", 1)
        if name not in parameters:
            raise ValueError(f"there is no parameter {name}")
        p = parameters[name]
        if entry == "step":  # never sharded; the fused update needs it on the parameter's device
            optimizer.state[p][entry] = torch.zeros((), device=p.device)
        else:
            optimizer.state[p][entry] = torch.zeros_like(p.detach())
    return optimizer_tensors(optimizer, names)
