"""Checkpoints: a folder per step, written under a temporary name and then renamed, so that one
loadable one always stands.

    checkpoints/step-000400/  weights.safetensors  optimizer.safetensors  [ema.safetensors]
                              state.json

No pickles. state.json holds the step and a SHA-256 of every file and of itself, so that a damaged
checkpoint is found out, named and passed over for the one before it. No generator state is stored:
every draw is a function of (seed, step).

Several processes write the same files as one: the first gathers what is sharded, and whoever loads
takes its part, so a run goes on with any number of them, sharded or not. The price is that the
first process holds the whole state in main memory. It is not torch.distributed.checkpoint, which
writes a file per process and a pickle that joins them: there a checkpoint is whole only when the
last process says so, and not one of its files can be opened alone.
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
WEIGHTS = ("weights", "ema")  # of a checkpoint's files those that a finished run is made of
DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    SafetensorError,
)  # what reading a damaged checkpoint raises
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
    """What training needs to go on: tensors by file stem, and a small JSON state with at least
    `step`.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: dict


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = KEEP) -> Path:
    """Write FOLDER/step-N whole or not at all, then drop all but the newest `keep`."""
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
        (temporary / "state.json").write_text(
            json.dumps({**state, "sha256": _digest_of(state)}, indent=1)
        )
        for path in temporary.iterdir():
            _sync(path)
        if (
            target.exists()
        ):  # the same step again, after a resume: the one that stands may be the damaged one
            shutil.rmtree(target)
        os.rename(temporary, target)
        _sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    tidy(folder, checkpoint.state["step"], keep)
    return target


def tidy(folder: Path, step: int, keep: int = KEEP) -> None:
    """Remove what a process that was killed left half-written, and all checkpoints up to `step` but
    the newest `keep` of them.

    Later ones, which training passed over as damaged, give way to their like when it gets there.
    """
    for left in folder.glob(".step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    passed = [path for path in _steps(folder) if _order(path) <= _order(folder / _name(step))]
    for old in passed[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest sound checkpoint, or None when there is none yet.

    A damaged one is named in a warning and passed over.

    Raises UserError when checkpoints stand there but none can be read.
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
    """As `load_checkpoint`, but without the optimiser; None where nothing stands. step: the
    checkpoint of this step instead of the newest.

    It may be asked while another process trains: a checkpoint that is taken away under the reader
    has newer ones, and these are read. Raises UserError when `step` has no sound checkpoint, with
    those that stand.
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
        others = (
            f"those of these steps stand: {', '.join(there[-N_LISTED:])}{more}"
            if there
            else "no other one stands"
        )
        what = (
            f"{path} is damaged ({_reason(error)})"
            if path.exists()
            else f"{folder} holds no checkpoint of that step"
        )
        raise UserError(f"--checkpoint {step}: {what}; {others}") from None


def _pass_over(path: Path, error: Exception) -> None:
    warnings.warn(
        f"checkpoint {path} is damaged ({_reason(error)}); using the one before it", stacklevel=3
    )


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def planned_steps(folder: Path) -> list[list[int]]:
    """From which step on how many steps were planned, as the newest checkpoint says; [] where none
    says so.
    """
    for path in reversed(_steps(folder)):
        try:
            return _state(path)["planned"]
        except DAMAGE:
            continue
    return []


def kept_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Of a checkpoint what a finished run keeps: the moving average where there is one."""
    return {**checkpoint.tensors["weights"], **checkpoint.tensors.get("ema", {})}


def precision_of(folder: Path) -> str | None:
    """The precision that the training with checkpoints in this folder began with; None where no
    checkpoint tells.
    """
    for path in reversed(_steps(folder)):
        try:
            return _state(path)["precision"]
        except (OSError, ValueError, LookupError, TypeError):
            continue  # damaged: it is named when it is loaded
    return None


def _read(path: Path, stems: Collection[str] | None = None) -> Checkpoint:
    """A checkpoint that is what was written, or of it the files of these stems; anything else
    raises one of DAMAGE.
    """
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
    """What a checkpoint's state.json says.

    Raises UserError, naming file and field, for what it cannot say.
    """
    state = read_json(path / "state.json", nan=True)
    check_known(state, STATE, str(path / "state.json"), NEEDED)
    return state


def _steps(folder: Path) -> list[Path]:
    """The folders of the checkpoints, the oldest first."""
    return sorted(
        (path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()),
        key=_order,
    )


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
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = {name: p for p, name in names.items()}
    for key, value in tensors.items():
        name, entry = key.rsplit(":", 1)
        p = parameters[
            name
        ]  # its step count is no part of anything: where the parameter is, as the fused update wants it
        optimizer.state[p][entry] = value.to(p.device) if entry == "step" else shard_like(value, p)
