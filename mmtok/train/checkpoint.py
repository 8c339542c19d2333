"""Checkpoints: a folder per step, written whole or not at all.

Each is written under a temporary name and then renamed, so that a crash leaves those before it.

    checkpoints/step-000400/  weights.safetensors  optimizer.safetensors  [ema.safetensors]
                              state.json

There are no pickles. state.json holds the step and a SHA-256 of every file and of itself, so that a
damaged checkpoint is detected, named and skipped for the one before it. No generator state is
stored: every random number is a function of (seed, step).

Several processes write the same files as one: rank 0 gathers sharded tensors, and each process
takes its shard when it loads. So a training can resume with any number of processes, sharded or
not. The price is that rank 0 holds the whole state in main memory. This is not
torch.distributed.checkpoint, which writes a file per process and a pickle that joins them: none of
its files can be opened alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmtok.errors import UserError
from mmtok.io.filenames import inside
from mmtok.io.files import save_tensors
from mmtok.io.serialize import Within, check_known
from mmtok.io.strict_json import read_json
from mmtok.train.distributed import shard_like

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
}
NEEDED = ("step", "files", "sha256")  # what every state.json has


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that training needs to resume.

    tensors: file stem -> name -> tensor. state: small JSON values, with `step` at least.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: dict


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = KEEP) -> Path:
    """Write FOLDER/step-N, whole or not at all; then remove all but the newest `keep`."""
    target = folder / _name(checkpoint.state["step"])
    temporary = folder / f".{target.name}.tmp"
    tidy(folder, checkpoint.state["step"], keep)
    try:
        temporary.mkdir(parents=True)
        digests = {}
        for stem, tensors in checkpoint.tensors.items():
            path = temporary / f"{stem}.safetensors"
            save_tensors(path, tensors)
            digests[path.name] = digest(path)
        state = {**checkpoint.state, "files": digests}
        text = json.dumps({**state, "sha256": _digest_of(state)}, indent=1)
        (temporary / "state.json").write_text(text)
        for path in temporary.iterdir():
            _sync(path)
        if target.exists():  # the same step again, after a resume from an older checkpoint
            shutil.rmtree(target)
        os.rename(temporary, target)
        _sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    tidy(folder, checkpoint.state["step"], keep)
    return target


def tidy(folder: Path, step: int, keep: int = KEEP) -> None:
    """Remove half-written checkpoints, and those up to `step` but for the newest `keep`.

    Later ones, which training skipped as damaged, are replaced when it reaches their steps.
    """
    for left in folder.glob(".step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    passed = [path for path in _steps(folder) if _order(path) <= _order(folder / _name(step))]
    for old in passed[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest sound checkpoint, or None when there is none yet.

    Damaged ones are skipped with a warning. Raises UserError when there are checkpoints but none
    can be read.
    """
    steps = _steps(folder)
    for path in reversed(steps):
        try:
            return _read(path)
        except DAMAGE as error:
            _pass_over(path, error)
    if steps:
        raise UserError(
            f"none of the checkpoints in {folder} can be read; remove the folder to train from the"
            " start"
        )
    return None


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
                _pass_over(path, error)
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


def _pass_over(path: Path, error: Exception) -> None:
    warnings.warn(
        f"checkpoint {path} is damaged ({_reason(error)}); using the one before it", stacklevel=3
    )


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


def _read(path: Path, stems: Collection[str] | None = None) -> Checkpoint:
    """Read a checkpoint, or only the files of these stems; raises one of DAMAGE if damaged."""
    state = _state(path)
    if state.pop("sha256") != _digest_of(state):
        raise ValueError("state.json is not what was written")
    files = {
        name: written
        for name, written in state.pop("files").items()
        if stems is None or Path(name).stem in stems
    }
    for name, written in files.items():
        if digest(inside(path, name)) != written:
            raise ValueError(f"{name} is not what was written")
    return Checkpoint({Path(name).stem: load_file(path / name) for name in files}, state)


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


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    parameters = {name: p for p, name in names.items()}
    for key, value in tensors.items():
        name, entry = key.rsplit(":", 1)
        p = parameters[name]
        if entry == "step":  # never sharded; the fused update needs it on the parameter's device
            optimizer.state[p][entry] = value.to(p.device)
        else:
            optimizer.state[p][entry] = shard_like(value, p)
