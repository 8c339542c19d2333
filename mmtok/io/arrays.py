"""Arrays in .npy and .npz files.

numpy's own reader trusts the header; this one checks it against the size of the file and the memory
budget first.
"""

from __future__ import annotations

import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from mmtok.errors import UserError, reading
from mmtok.io import memory_budget

KINDS = "fiubU"  # of dtypes that are read: numbers, and text
LOCAL_HEADER_BYTES = 30  # of a member of a zip file, before its name
CHECKED_BYTES = 2**20  # that are summed at once
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
    shape, fortran, dtype = _header(file, name, what, size)
    n_bytes = math.prod(shape) * dtype.itemsize
    memory_budget.check(2 * n_bytes, name)
    data = bytearray(file.read(n_bytes))
    if dtype.kind == "U":
        code_points = np.frombuffer(data, np.dtype("u4").newbyteorder(dtype.byteorder))
        if code_points.max(initial=0) > sys.maxunicode:
            raise UserError(
                f"{name}: cannot be read as {what} (its text holds what is no character)"
            )
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _header(
    file: IO[bytes], name: str, what: str, size: int
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and dtype of the array in an open .npy file of `size`.

    Raises UserError where the file is too short for them.
    """
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
    return shape, fortran, dtype


class ArrayRows:
    """An array of a .npy file, or a named one of a .npz file, of which rows are read.

    What lies packed in a .npz is unpacked from its beginning again where rows come before those
    that were read last.

    Args:
        path: the file.
        what: what messages call its content.
        name: of the array in a .npz file; "" for a .npy file.

    Raises:
        UserError: what is no array, or larger than the file.
    """

    def __init__(self, path: Path, what: str, name: str = "") -> None:
        self.path = path
        self._what = what
        self._shown = f"{path}: {name!r}" if name else str(path)
        self._archive: zipfile.ZipFile | None = None
        self._raw: IO[bytes] | None = None
        with reading(path, what):
            self._file: IO[bytes] = path.open("rb")
            self._raw = self._file
            begin = 0
            size = path.stat().st_size
            if name:
                self._archive = zipfile.ZipFile(self._file)
                self._info = self._archive.getinfo(f"{name}.npy")
                size = self._info.file_size
                if self._info.compress_type == zipfile.ZIP_STORED:
                    begin = _begin_of_member(self._file, self._info)
                else:
                    self._file = self._archive.open(self._info)
            self._file.seek(begin)
            header = _header(self._file, self._shown, what, begin + size)
            self._start = self._file.tell()
        self.shape, self._fortran, self.dtype = header
        self._whole: np.ndarray | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop.

        Raises UserError where they are more than the memory budget, or cannot be read.
        """
        if self._fortran and len(self.shape) > 1:
            return self._columns_first()[start:stop]
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        n_bytes = (stop - start) * row_bytes
        memory_budget.check(2 * n_bytes, self._shown, f"{stop - start:,} rows")
        with reading(self.path, self._what):
            self._file.seek(self._start + start * row_bytes)
            data = bytearray(self._file.read(n_bytes))
            return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])

    def verify(self) -> None:
        """Raise UserError where a .npz file's checksum says that what lies in it was changed.

        What is packed is checked as it is read.
        """
        if self._archive is None or self._info.compress_type != zipfile.ZIP_STORED:
            return
        with reading(self.path, self._what):
            self._file.seek(_begin_of_member(self._file, self._info))
            left = self._info.file_size
            found = 0
            while block := self._file.read(min(left, CHECKED_BYTES)):
                found = zlib.crc32(block, found)
                left -= len(block)
        if found != self._info.CRC:
            raise UserError(
                f"{self._shown}: cannot be read as {self._what} (its checksum is another one)"
            )

    def _columns_first(self) -> np.ndarray:
        """The whole array, whose rows do not lie together."""
        if self._whole is None:
            n_bytes = math.prod(self.shape) * self.dtype.itemsize
            memory_budget.check(2 * n_bytes, self._shown)
            with reading(self.path, self._what):
                self._file.seek(self._start)
                data = bytearray(self._file.read(n_bytes))
                self._whole = np.frombuffer(data, self.dtype).reshape(self.shape, order="F")
        return self._whole

    def close(self) -> None:
        """Close the file."""
        for file in (self._archive, self._raw):
            if file is not None:
                file.close()

    def __del__(self) -> None:
        # a reader that was given up half-way, or that nobody closed
        self.close()


def _begin_of_member(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where the bytes of an unpacked member of a zip file begin; APPNOTE.TXT, 4.3.7."""
    file.seek(info.header_offset)
    header = file.read(LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
    return info.header_offset + LOCAL_HEADER_BYTES + name_bytes + extra_bytes
