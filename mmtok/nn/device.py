"""Which device computes: decided here and nowhere else, from a name such as --device takes, and
handed down as a value.

Tokenizers, vocoders and judges stay on the CPU whatever is named, so that their codes and figures
are the same on every machine.
"""

from __future__ import annotations

import difflib
import warnings

import torch

from mmtok.errors import UserError

KINDS = ("cpu", "cuda", "mps")


def resolve_device(name: str | None = None) -> torch.device:
    """The device of this name: cpu, cuda (the first GPU), cuda:1, mps.

    None: a CUDA GPU where there is one, else the CPU.

    mps is taken only where it is named: no test has run on one, and it has no float64, see
    `sum_dtype`. Raises UserError, in one line, for a device that is not there and for what is no
    device's name.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    if kind not in KINDS or colon and not (index.isascii() and index.isdecimal()):
        close = difflib.get_close_matches(kind.lower(), (*KINDS, "gpu"), 1)
        hint = (
            f"did you mean {close[0].replace('gpu', 'cuda')}?"
            if close
            else "it is cpu, cuda, cuda:1 (the second GPU) or mps"
        )
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
        why = (
            "torch finds no CUDA GPU" if torch.version.cuda else "this torch was built without CUDA"
        )
        raise UserError(f"--device {name}: {why} here; leave --device out for the best there is")
    count = torch.cuda.device_count()
    if index >= count:
        raise UserError(
            f"--device {name}: there {'is one GPU' if count == 1 else f'are {count} GPUs'} here,"
            " counted from cuda:0"
        )
    return torch.device("cuda", index) if ":" in name else torch.device("cuda")


def resolve_distributed_device(name: str | None) -> torch.device:
    """As `resolve_device`, for several processes.

    Raises UserError too for a device that they cannot share.
    """
    device = resolve_device(name)
    if device.type == "mps" or device.index is not None:
        raise UserError(
            f"--device {name}: several processes cannot share it; say cuda, of which each takes its"
            " own, or cpu"
        )
    return device


def local_device(shared: torch.device, local_rank: int) -> torch.device:
    """Of what `resolve_distributed_device` gave, process number `local_rank` of this machine's part: a GPU
    each, or the CPU.

    Raises UserError for fewer GPUs than processes.
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
    """For work that is done on the CPU whatever is asked: check the name all the same, and say so
    where another device was named.
    """
    if name is not None and resolve_device(name).type != "cpu":
        warnings.warn(
            f"--device {name}: {what} on the CPU all the same, so that the results are those of any"
            " machine",
            stacklevel=2,
        )


def sum_dtype(device: torch.device) -> torch.dtype:
    """What sums that must not drift are made in on a device: float64; on MPS, which has none,
    float32.
    """
    return torch.float32 if device.type == "mps" else torch.float64
