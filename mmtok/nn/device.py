"""The device to compute on, from a name as --device takes it; decided here and nowhere else.

Tokenizers, vocoders and judges stay on the CPU in any case, so that their codes and figures are the
same on every machine.
"""

from __future__ import annotations

import difflib
import os
import shutil
import sysconfig
import warnings
from functools import cache, lru_cache
from pathlib import Path

import torch

from mmtok.errors import UserError

KINDS = ("cpu", "cuda", "mps")


def resolve_device(name: str | None = None) -> torch.device:
    """The device of this name: cpu, cuda (the first GPU), cuda:1, mps.

    None is a CUDA GPU where there is one, else the CPU. mps is used only where it is named: no test
    has run on one, and it has no float64 (see `sum_dtype`).

    Raises UserError for a device that is not there, and for a name that is no device's.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("cpu")
    kind, colon, index = name.partition(":")
    if kind not in KINDS or (colon and not (index.isascii() and index.isdecimal())):
        close = difflib.get_close_matches(kind.lower(), (*KINDS, "gpu"), 1)
        hint = "it is cpu, cuda, cuda:1 (the second GPU) or mps"
        if close:
            hint = f"did you mean {close[0].replace('gpu', 'cuda')}?"
        raise UserError(f"--device {name}: no such device; {hint}")
    if kind == "cuda":
        return _gpu(name, int(index or 0))
    if int(index or 0):
        raise UserError(f"--device {name}: there is one {kind} only; say {kind}")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError(
            "--device mps: this machine has no MPS (it needs a Mac with Apple silicon); leave"
            " --device out for the best there is"
        )
    return torch.device(kind)


def _gpu(name: str, index: int) -> torch.device:
    if not torch.cuda.is_available():
        why = "this torch was built without CUDA"
        if torch.version.cuda:
            why = "torch finds no CUDA GPU"
        raise UserError(f"--device {name}: {why} here; leave --device out for the best there is")
    count = torch.cuda.device_count()
    if index >= count:
        what = "is one GPU" if count == 1 else f"are {count} GPUs"
        raise UserError(f"--device {name}: there {what} here, counted from cuda:0")
    if ":" in name:
        torch.cuda.set_device(index)  # where kernels are launched and graphs are captured
        return torch.device("cuda", index)
    return torch.device("cuda")


def resolve_distributed_device(name: str | None) -> torch.device:
    """As `resolve_device`, for several processes: the kind of device, of which each has its own.

    Raises UserError also for a device that they cannot share.
    """
    device = resolve_device(name)
    if device.type == "mps" or device.index is not None:
        raise UserError(
            f"--device {name}: several processes cannot share it; say cuda, of which each takes its"
            " own, or cpu"
        )
    return device


def local_device(shared: torch.device, local_rank: int) -> torch.device:
    """The device of process `local_rank` of this machine: a GPU of its own, or the CPU.

    shared: of `resolve_distributed_device`. Raises UserError for fewer GPUs than processes.
    """
    if shared.type == "cpu":
        return shared
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} of this machine has no GPU left, there are"
            f" {torch.cuda.device_count()}: lower --nproc-per-node, or say --device cpu"
        )
    return torch.device("cuda", local_rank)


def stay_on_cpu(name: str | None, what: str) -> None:
    """Check the name of a device for work that is always done on the CPU.

    Warns where another device is named. Raises UserError as `resolve_device` does.
    """
    if name is not None and resolve_device(name).type != "cpu":
        warnings.warn(
            f"--device {name}: {what} on the CPU all the same, so that the results are those of any"
            " machine",
            stacklevel=2,
        )


def sum_dtype(device: torch.device) -> torch.dtype:
    """The type of long sums on a device: float64, but float32 on MPS, which has no float64."""
    if device.type == "mps":
        return torch.float32
    return torch.float64


@cache  # captured graphs read them where they are
def constant(values: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Whole numbers as a tensor on a device, copied there once: a copy makes the host wait.

    The tensor is shared: change it never.
    """
    with torch.inference_mode(False):  # else it could not be used in training later
        return torch.tensor(values, dtype=torch.long, device=device)


@lru_cache
def missing_for_kernels() -> str:
    """What Triton needs to build its launchers, which are C, and this machine does not have."""
    compilers = (os.environ.get("CC", "gcc"), "gcc", "cc", "clang")
    if not any(shutil.which(name) for name in compilers):
        return "a C compiler (gcc)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's headers (python3-dev)"
    return ""


class Reading:
    """Numbers on their way from a device to the host, which goes on meanwhile."""

    def __init__(self, x: torch.Tensor) -> None:
        """Ask for a tensor (n,)."""
        self._event: torch.cuda.Event | None = None
        self._host = x.detach()
        if x.is_cuda:
            self._host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._host.copy_(x.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(x.device))

    def numbers(self) -> list[float]:
        """The numbers; waits for them."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.tolist()
