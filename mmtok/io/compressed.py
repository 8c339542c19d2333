"""Files that may be compressed: plain, `.gz` or `.zst`; their bytes, from any place on.

Positions count decompressed bytes. A compressed file can be read forward only, so it is read from
its start to what is asked for; each process keeps the last few open, where the next place is mostly
near.
"""

from __future__ import annotations

import atexit
import gzip
import io
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from mmtok.errors import UserError, reason_of

COMPRESSED = (".gz", ".zst")
BLOCK = 2**20  # bytes that are read at once
MOST_OPEN = 4  # compressed files that a process keeps open
FAULTS = (EOFError, zlib.error, OSError)  # of a file that cannot be read


def is_compressed(path: Path) -> bool:
    """Whether a file is compressed, by its suffix."""
    return path.name.lower().endswith(COMPRESSED)


def bare_path(path: Path) -> Path:
    """The path without the suffix of compression: a.jsonl of a.jsonl.zst."""
    if is_compressed(path):
        return path.with_suffix("")
    return path


def open_bytes(path: Path) -> Any:
    """A file of the decompressed bytes of a file. Raises OSError where there is none."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path)
    file = path.open("rb")
    if suffix == ".zst":
        import pyarrow as pa

        return pa.CompressedInputStream(file, "zstd")
    return file


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """The decompressed text of a UTF-8 file without its byte order mark; newline as of `open`.

    Reading it raises one of FAULTS for a damaged file, and UnicodeDecodeError.
    """
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline=newline)


def fault_of(path: Path, error: BaseException) -> UserError:
    """The error to raise for one of FAULTS."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: no such file")
    if is_compressed(path):
        return UserError(f"{path}: cannot be unpacked, it may be truncated: {reason_of(error)}")
    return UserError(f"{path}: cannot be read: {reason_of(error)}")


class Decompressed:
    """The decompressed bytes of a file. Raises UserError for one that cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        self._open()

    def read(self, n: int) -> bytes:
        """At most n bytes; none at the end."""
        try:
            content = bytes(self._file.read(n))
        except FAULTS as error:
            raise fault_of(self.path, error) from None
        self.position += len(content)
        return content

    def seek(self, position: int) -> None:
        """Go to a position; a compressed file is read up to it."""
        if not is_compressed(self.path):
            self._file.seek(position)
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
        self._file.close()

    def _open(self) -> None:
        self.position = 0
        try:
            self._file = open_bytes(self.path)
        except OSError as error:
            raise fault_of(self.path, error) from None


_kept: OrderedDict[tuple[Path, int], Decompressed] = OrderedDict()  # by path and time of change


def _kept_open(path: Path) -> Decompressed:
    """A compressed file that this process has open, or opens now."""
    key = (path, path.stat().st_mtime_ns)
    if key not in _kept:
        _kept[key] = Decompressed(path)
    _kept.move_to_end(key)
    while len(_kept) > MOST_OPEN:
        _kept.popitem(last=False)[1].close()
    return _kept[key]


@atexit.register
def close_kept() -> None:
    """Close the compressed files that this process keeps open."""
    while _kept:
        _kept.popitem()[1].close()


def blocks(path: Path, first: int = 0, last: int | None = None) -> Iterator[bytes]:
    """The decompressed bytes of a file from `first` to `last`, in blocks; None: to the end.

    A compressed file of which a part is asked for stays open for the next part.

    Raises UserError for a file that cannot be read, and for one that ends before `last`.
    """
    is_kept = last is not None and is_compressed(path)
    file = None
    if not is_kept:
        file = Decompressed(path)
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
