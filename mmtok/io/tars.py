"""Tars of samples, as webdataset writes them, read by offset.

A sample is the members whose names are equal up to the first dot: 0001.jpg, 0001.txt, 0001.json.
The headers of a tar are walked once, which gives an index; any process reads any sample then.
"""

from __future__ import annotations

import io
import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmtok.errors import UserError, reason_of
from mmtok.io import memory_budget
from mmtok.io.remembered import Remembered
from mmtok.io.walk import SYSTEM

BLOCK = 512  # bytes of a header; contents are padded to a multiple
WINDOW = 2**17  # bytes read at once while headers are walked, as small members lie close together
MOST_NAME = 2**20  # bytes of a member that holds the next one's long name
PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
REGULAR = b"0\0007"  # types of plain files
FOLDER = b"5"
OF_NEXT = b"xgLK"  # types that say something of the next member, or of all
SAMPLE = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # key and suffix, as webdataset cuts them
TARS = (".tar",)
PACKED_TARS = (".tgz", ".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2")
N_OPEN = 16  # tars that a process keeps open


Notes = dict[str, tuple[int, str]]


class Span(NamedTuple):
    """Where the content of a member lies in its tar, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class TarIndex:
    """The samples of a tar, in its order.

    Attributes:
        path: of the tar.
        suffixes: of its members, in lower case and without the first dot: jpg, txt, seg.png.
        n_members: of all its samples, and of what was left out.
        notes: what a `Tally` of its members says -> how many, and the first.
    """

    path: Path
    suffixes: tuple[str, ...]
    n_members: int
    notes: Notes
    _keys: bytes = field(repr=False)
    _key_ends: array = field(repr=False)
    _spans: dict[str, np.ndarray] = field(repr=False)  # suffix -> (N, 2) offset, size; -1: none

    def __len__(self) -> int:
        return len(self._key_ends)

    def key(self, i: int) -> str:
        """The name of sample i, without its suffixes."""
        start = self._key_ends[i - 1] if i else 0
        return self._keys[start : self._key_ends[i]].decode()

    def span(self, i: int, suffix: str) -> Span | None:
        """Where sample i has its member of this suffix; None where it has none."""
        spans = self._spans.get(suffix)
        if spans is None or spans[i, 0] < 0:
            return None
        return Span(int(spans[i, 0]), int(spans[i, 1]))

    def sizes(self, suffix: str) -> np.ndarray:
        """Bytes of each sample's member of this suffix, -1 where it has none: int64 (N,)."""
        if suffix not in self._spans:
            return np.full(len(self), -1)
        return self._spans[suffix][:, 1]

    def having(self, suffix: str) -> np.ndarray:
        """Whether each sample has a member of this suffix: bool (N,)."""
        if suffix not in self._spans:
            return np.zeros(len(self), bool)
        return self._spans[suffix][:, 0] >= 0


_indices: Remembered[TarIndex] = Remembered(10_000)


def tar_index(path: Path) -> TarIndex:
    """The index of a tar; that of a file that did not change is made once.

    Raises UserError, naming the file, for one that is missing, packed, truncated or no tar.
    """
    try:
        status = path.stat()
        if not status.st_size:
            raise UserError(f"{path}: the file is empty")
        return _indices(path, lambda: _index(path, status.st_size))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason_of(error)}") from None


def _index(path: Path, n_bytes: int) -> TarIndex:
    samples: dict[str, int] = {}
    members: dict[str, tuple[array, array, array]] = {}  # suffix -> samples, offsets, sizes
    notes: Notes = {}
    for name, span in _members(path, n_bytes, notes):
        match = SAMPLE.fullmatch(name)
        if match is None:
            _note(notes, "left out: names without a suffix", f"{path}: {name}")
            continue
        key, suffix = match.groups()
        which, offsets, sizes = members.setdefault(
            suffix.lower(), (array("q"), array("q"), array("q"))
        )
        which.append(samples.setdefault(key, len(samples)))
        offsets.append(span.offset)
        sizes.append(span.size)
    spans = {}
    for suffix, (which, offsets, sizes) in members.items():
        spans[suffix] = _by_sample(len(samples), which, offsets, sizes)
        n_again = len(which) - len(set(which))
        if n_again:
            _note(
                notes, "replaced by one of the same name behind it", f"{path}: .{suffix}", n_again
            )
    keys = [key.encode() for key in samples]
    ends = array("q", np.cumsum([len(key) for key in keys], dtype=np.int64).tobytes())
    n_members = sum(len(which) for which, _, _ in members.values())
    n_members += sum(count for count, _ in notes.values())
    return TarIndex(path, tuple(sorted(spans)), n_members, notes, b"".join(keys), ends, spans)


def _by_sample(n: int, which: array, offsets: array, sizes: array) -> np.ndarray:
    """Offset and size by sample, -1 where there is none; the last of several, as tar unpacks."""
    spans = np.full((n, 2), -1, np.int64)
    spans[np.asarray(which), 0] = offsets
    spans[np.asarray(which), 1] = sizes
    return spans


def _note(notes: Notes, what: str, name: str, n: int = 1) -> None:
    count, first = notes.get(what, (0, name))
    notes[what] = (count + n, first)


# ---- headers


def _members(path: Path, n_bytes: int, notes: Notes) -> Iterator[tuple[str, Span]]:
    """The plain files of a tar: name and place. Others are left out and noted."""
    name: str | None = None  # of the next member, where a member before it says that
    size: int | None = None
    offset = 0
    has_end = False
    with _Window(path, n_bytes) as window:
        while offset < n_bytes:
            header = window.read(offset, BLOCK)
            has_end = not header.strip(b"\0")
            if has_end:  # others may follow, where tars were put one behind another
                offset += BLOCK
                continue
            kind, own_name, own_size = _header(path, offset, header)
            content = Span(offset + BLOCK, own_size)
            if kind not in OF_NEXT and size is not None:
                content = Span(offset + BLOCK, size)
            if content.offset + content.size > n_bytes:
                raise UserError(
                    f"{path}: truncated: the member {name or own_name} would end at byte"
                    f" {content.offset + content.size:,} of {n_bytes:,}; fetch the file again"
                )
            offset = content.offset + -(-content.size // BLOCK) * BLOCK
            if kind in OF_NEXT:
                name, size = _of_next(path, kind, window, content, (name, size))
                continue
            name = (name or own_name).removeprefix("./")
            left_out = _why_left_out(kind, name)
            if left_out:
                _note(notes, f"left out: {left_out}", f"{path}: {name}")
            elif kind != FOLDER and not name.endswith("/"):
                yield name, content
            name = None
            size = None
    if not has_end:
        what = "the last one though no end mark follows: is the tar cut short?"
        _note(notes, what, str(path))


def _why_left_out(kind: bytes, name: str) -> str:
    """Why a member is none of a sample; "" for files and folders."""
    parts = name.split("/")
    if any(part.startswith(".") or part.lower() in SYSTEM for part in parts):
        return "hidden or of a system"
    if kind not in REGULAR + FOLDER:
        return "links, devices and the like"
    return ""


class _Window:
    """A file that is read forwards, a window at a time."""

    def __init__(self, path: Path, n_bytes: int) -> None:
        self.path = path
        self.n_bytes = n_bytes

    def __enter__(self) -> _Window:
        self.file = open(self.path, "rb")
        self.start = 0
        self.bytes = b""
        start = self.read(0, BLOCK)
        for magic, packing in PACKED.items():
            if start.startswith(magic):
                self.file.close()
                raise UserError(
                    f"{self.path}: is packed ({packing}), and samples are read by their offset;"
                    " unpack it first"
                )
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file; fewer at its end."""
        if not self.start <= offset <= offset + size <= self.start + len(self.bytes):
            self.bytes = os.pread(self.file.fileno(), max(size, WINDOW), offset)
            self.start = offset
        return self.bytes[offset - self.start : offset - self.start + size]


def _header(path: Path, offset: int, header: bytes) -> tuple[bytes, str, int]:
    """(type, name, size) of a member. Raises UserError for what is no header of a tar."""
    is_tar = len(header) == BLOCK
    if is_tar:
        # the sum of all bytes, its own eight taken as blanks
        total = sum(header) - sum(header[148:156]) + 8 * 32
        is_tar = _number(header[148:156]) == total
    if not is_tar and offset:
        raise UserError(
            f"{path}: damaged or truncated at byte {offset:,}, where the next member should begin;"
            " fetch the file again"
        )
    if not is_tar:
        raise UserError(f"{path}: is no tar")
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].split(b"\0")[0]
        if prefix:
            name = prefix + b"/" + name
    size = _number(header[124:136])
    if size is None:
        raise UserError(f"{path}: the member {_text(name)} has no size; the file is damaged")
    return header[156:157], _text(name), size


def _number(cell: bytes) -> int | None:
    """A number in octal digits, or in binary where the first bit is set; None for neither."""
    if cell[0] & 0x80:
        return int.from_bytes(cell, "big") & ((1 << (8 * len(cell) - 1)) - 1)
    digits = cell.strip(b" \0") or b"0"
    if digits.translate(None, b"01234567"):
        return None
    return int(digits, 8)


def _of_next(
    path: Path,
    kind: bytes,
    window: _Window,
    content: Span,
    known: tuple[str | None, int | None],
) -> tuple[str | None, int | None]:
    """Name and size of the next member, where this one says them: GNU's L, the records of pax."""
    if kind not in b"Lx":
        return known
    if content.size > MOST_NAME:
        raise UserError(f"{path}: a name of {content.size:,} bytes; the file is damaged")
    said = window.read(content.offset, content.size)
    name, size = known
    if kind == b"L":
        return _text(said.split(b"\0")[0]), size
    while said.strip(b"\0"):
        digits, _, _ = said.partition(b" ")
        n_bytes = int(digits) if digits.isdigit() else 0
        keyword, equals, value = said[len(digits) + 1 : n_bytes - 1].partition(b"=")
        if not equals:
            raise UserError(f"{path}: byte {content.offset:,} is no pax record; it is damaged")
        if keyword == b"path":
            name = _text(value)
        elif keyword == b"size" and value.isdigit():
            size = int(value)
        said = said[n_bytes:]
    return name, size


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


# ---- contents


def read_span(path: Path, span: Span, name: str, most: int | None = None) -> bytes:
    """The content of a member, or its first bytes; `name` is how messages call it.

    Raises UserError where the tar is gone or shorter now, or its member too large for the budget.
    """
    n_bytes = span.size
    if most is not None:
        n_bytes = min(most, n_bytes)
    memory_budget.check(2 * n_bytes, name)
    try:
        content = _open_files(path, lambda: _OpenFile(path)).read(span.offset, n_bytes)
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {reason_of(error)}") from None
    if len(content) < n_bytes:
        raise UserError(f"{name}: its tar is shorter now than when it was listed")
    return content


class MemberFile(io.RawIOBase):
    """A member as a file of its own, of which no more is read than is asked for."""

    def __init__(self, path: Path, span: Span, name: str) -> None:
        self._path = path
        self._span = span
        self._name = name
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of a file."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._span.size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def tell(self) -> int:
        """As of a file."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """As of a file. Raises UserError as `read_span` does."""
        n_bytes = min(len(buffer), max(self._span.size - self._at, 0))
        part = Span(self._span.offset + self._at, n_bytes)
        buffer[:n_bytes] = read_span(self._path, part, self._name)
        self._at += n_bytes
        return n_bytes


class _OpenFile:
    """A file that several processes may read from, as it has no position."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Bytes from there on; fewer at the end of the file."""
        return os.pread(self.descriptor, n_bytes, offset)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


_open_files: Remembered[_OpenFile] = Remembered(N_OPEN)
