"""Bytes of files that may be packed: plain, `.gz` or `.zst`, from any place on.

Positions count unpacked bytes. A packed file can be read forward only, so it is read from its start
to what is asked for; each process keeps the last few open, where the next place is mostly near.
"""

from __future__ import annotations

import atexit
import gzip
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmtok.errors import UserError, reason_of

PACKED = (".gz", ".zst")
BLOCK = 2**20  # bytes that are read at once
MOST_OPEN = 4  # packed files that a process keeps open


def is_packed(path: Path) -> bool:
    """Whether a file is packed, by its suffix."""
    return path.name.lower().endswith(PACKED)


def bare_path(path: Path) -> Path:
    """The path without the suffix of packing: a.jsonl of a.jsonl.zst."""
    if is_packed(path):
        return path.with_suffix("")
    return path


class Unpacked:
    """The unpacked bytes of a file. Raises UserError for one that cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self._files: list[Any] = []
        self._open()

    def read(self, n: int) -> bytes:
        """At most n bytes; none at the end."""
        try:
            content = bytes(self._files[-1].read(n))
        except (EOFError, zlib.error, OSError) as error:
            raise UserError(self._fault(error)) from None
        self.position += len(content)
        return content

    def seek(self, position: int) -> None:
        """Go to a position; a packed file is read up to it."""
        if not is_packed(self.path):
            self._files[-1].seek(position)
            self.position = position
            return
        if position < self.position:
            self.close()
            self._open()
        while self.position < position:
            if not self.read(min(BLOCK, position - self.position)):
                raise UserError(f"{self.path}: has become shorter while it was read")

    def close(self) -> None:
        """Close the file."""
        while self._files:
            self._files.pop().close()

    def _open(self) -> None:
        self.position = 0
        try:
            self._files.append(self.path.open("rb"))
            if self.path.suffix.lower() == ".gz":
                self._files.append(gzip.GzipFile(fileobj=self._files[0]))
            elif self.path.suffix.lower() == ".zst":
                import pyarrow as pa

                self._files.append(pa.CompressedInputStream(self._files[0], "zstd"))
        except FileNotFoundError:
            raise UserError(f"{self.path}: no such file") from None
        except OSError as error:
            self.close()
            raise UserError(self._fault(error)) from None

    def _fault(self, error: Exception) -> str:
        if is_packed(self.path):
            return f"{self.path}: cannot be unpacked, it may be truncated: {reason_of(error)}"
        reason = getattr(error, "strerror", None) or reason_of(error)
        return f"{self.path}: cannot be read: {reason}"


_kept: OrderedDict[tuple[Path, int], Unpacked] = OrderedDict()  # by path and time of change


def _kept_open(path: Path) -> Unpacked:
    """A packed file that this process has open, or opens now."""
    key = (path, path.stat().st_mtime_ns)
    if key not in _kept:
        _kept[key] = Unpacked(path)
    _kept.move_to_end(key)
    while len(_kept) > MOST_OPEN:
        _kept.popitem(last=False)[1].close()
    return _kept[key]


@atexit.register
def close_kept() -> None:
    """Close the packed files that this process keeps open."""
    while _kept:
        _kept.popitem()[1].close()


def blocks(path: Path, first: int = 0, last: int | None = None) -> Iterator[bytes]:
    """The unpacked bytes of a file from `first` to `last`, in blocks; None: to the end.

    A packed file of which a part is asked for stays open for the next part.

    Raises UserError for a file that cannot be read, and for one that ends before `last`.
    """
    is_kept = last is not None and is_packed(path)
    file = None
    if not is_kept:
        file = Unpacked(path)
    position = first
    try:
        while last is None or position < last:
            wanted = BLOCK
            if last is not None:
                wanted = min(BLOCK, last - position)
            source = file or _kept_open(path)
            if source.position != position:
                source.seek(position)
            block = source.read(wanted)
            if not block:
                break
            position += len(block)
            yield block
    finally:
        if file is not None:
            file.close()
    if last is not None and position < last:
        raise UserError(f"{path}: has become shorter while it was read")


def lines(path: Path, first: int = 0, last: int | None = None) -> Iterator[tuple[int, bytes]]:
    r"""(position, line with its end) from `first` to `last`; lines end at \n.

    Raises UserError as `blocks` does.
    """
    position = first
    rest: list[bytes] = []
    for block in blocks(path, first, last):
        head, *others = block.split(b"\n")
        rest.append(head)
        for other in others:
            line = b"".join(rest) + b"\n"
            yield position, line
            position += len(line)
            rest = [other]
    line = b"".join(rest)
    if line:
        yield position, line
