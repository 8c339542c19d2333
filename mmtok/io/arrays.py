"""Arrays in .npy and .npz files.

numpy's own reader trusts the header; this one checks it against the size of the file and the memory
budget first.
"""

from __future__ import annotations

import math
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from mmtok.errors import UserError, reading
from mmtok.io import memory_budget

KINDS = "fiubU"  # of dtypes that are read: numbers, and text
NO_NUMBERS = "not a numpy file of numbers, or a truncated one"


def read_npy(path: Path, what: str) -> np.ndarray:
    """The array in a .npy file; `what` is what messages call its content.

    Raises UserError for what is no array, or larger than the file or the memory budget.
    """
    with reading(path, what), open(path, "rb") as file:
        return _array(file, str(path), what, path.stat().st_size)


def names_in(path: Path, what: str) -> list[str]:
    """The names of the arrays in a .npz file."""
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: cannot be read as {what} ({NO_NUMBERS})")
    with reading(path, what), zipfile.ZipFile(path) as file:
        return [name.removesuffix(".npy") for name in file.namelist()]


def read_npz(path: Path, names: Sequence[str], what: str) -> list[np.ndarray]:
    """Arrays of a .npz file by name.

    Raises UserError as `read_npy` does, and for missing names.
    """
    found = []
    with reading(path, what), zipfile.ZipFile(path) as file:
        for name in names:
            info = file.getinfo(f"{name}.npy")
            with file.open(info) as member:
                found.append(_array(member, f"{path}: {name!r}", what, info.file_size))
    return found


def _array(file: IO[bytes], name: str, what: str, size: int) -> np.ndarray:
    """The array in an open .npy file of so many bytes."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise UserError(f"{name}: cannot be read as {what} ({NO_NUMBERS})")
    shape, fortran, dtype = readers[version](file)
    if dtype.kind not in KINDS or not dtype.itemsize or min(shape, default=0) < 0:
        raise UserError(f"{name}: cannot be read as {what} ({NO_NUMBERS})")
    n_bytes = math.prod(shape) * dtype.itemsize
    n_there = size - file.tell()
    if n_bytes > n_there:
        raise UserError(
            f"{name}: cannot be read as {what} (truncated: its header promises"
            f" {memory_budget.format_size(n_bytes)}, and"
            f" {memory_budget.format_size(n_there)} are there)"
        )
    memory_budget.check(2 * n_bytes, name)
    data = bytearray(file.read(n_bytes))
    if dtype.kind == "U":
        code_points = np.frombuffer(data, np.dtype("u4").newbyteorder(dtype.byteorder))
        if code_points.max(initial=0) > sys.maxunicode:
            raise UserError(
                f"{name}: cannot be read as {what} (its text holds what is no character)"
            )
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
