"""A text as a stream: blocks of characters, documents between marks, chunks, ranges of bytes.

Nothing here holds more than a block of a file, so a text may be of any size.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmtok.errors import UserError
from mmtok.io.compressed import blocks
from mmtok.io.progress import Progress
from mmtok.sources.base import CHUNK, Example, Unusable

BLANK_LINES = "blank lines"  # the mark that stands for one blank line, or several
BLANKS = re.compile(r"\r?\n(?:[ \t]*\r?\n)+")
LONG_BYTES = 2**30  # of a file: looking at it shows how far it is
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how such a file begins
FROM_UTF_16 = "convert it first, e.g. iconv -f utf-16 -t utf-8"
TO_UTF8 = "convert it first, e.g. iconv -f latin1 -t utf-8"


class Piece(NamedTuple):
    """Some characters of a document.

    They begin at the byte `first` of the decompressed file; the document ends with them where
    `ends`.
    """

    text: str
    first: int
    ends: bool = False


def decoded_blocks(path: Path, first: int = 0, last: int | None = None) -> Iterator[Piece]:
    """The characters of a UTF-8 file, a block at a time.

    Raises UserError for a file that is missing, empty or not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = first
    is_empty = True
    n_pending = 0  # bytes of a character that a block has cut
    try:
        for block in blocks(path, first, last):
            is_empty = False
            text = decoder.decode(block)
            yield Piece(text, position - n_pending)
            position += len(block)
            n_pending = len(decoder.getstate()[0])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        at = position - n_pending + error.start
        if at == 0 and error.object[:2] in UTF_16:
            raise UserError(f"{path}: is UTF-16 text; {FROM_UTF_16}") from None
        raise UserError(
            f"{path}: not UTF-8 text: byte 0x{error.object[error.start]:02X} at offset {at};"
            f" {TO_UTF8}"
        ) from None
    if is_empty and last is None:
        raise UserError(f"{path}: the file is empty; a text of at least one character is needed")


def pieces(path: Path, mark: str, first: int = 0, last: int | None = None) -> Iterator[Piece]:
    """The documents of a file, in pieces. The marks between them are taken out.

    mark: between documents; "": the file is one.
    """
    if mark:
        yield from _between_marks(decoded_blocks(path, first, last), mark)
        return
    end = first
    for piece in decoded_blocks(path, first, last):
        end = piece.first + n_bytes_of(piece.text)
        yield piece
    yield Piece("", end, ends=True)


def _between_marks(stream: Iterable[Piece], mark: str) -> Iterator[Piece]:
    """Pieces of documents. What may be the beginning of a mark waits for the next block."""
    pattern = re.compile(re.escape(mark))
    if mark == BLANK_LINES:
        pattern = BLANKS
    rest = Piece("", 0)
    for block in stream:
        if not rest.text:
            rest = Piece("", block.first)
        text = rest.text + block.text
        safe = len(text) - len(mark) + 1
        if mark == BLANK_LINES:
            safe = len(text.rstrip())
        rest = yield from _documents(text, rest.first, pattern, safe)
    rest = yield from _documents(rest.text, rest.first, pattern, len(rest.text) + 1)
    yield Piece(rest.text, rest.first, ends=True)


def _documents(
    text: str, first: int, pattern: re.Pattern, safe: int
) -> Generator[Piece, None, Piece]:
    """The documents in a text that begins at the byte `first`; returns what is left of it.

    safe: marks that begin before this character are whole.
    """
    start = 0
    for match in pattern.finditer(text):
        if match.start() >= safe:
            break
        document = text[start : match.start()]
        yield Piece(document, first, ends=True)
        first += n_bytes_of(document) + n_bytes_of(match[0])
        start = match.end()
    if start < safe:
        yield Piece(text[start:safe], first)
        first += n_bytes_of(text[start:safe])
        start = safe
    return Piece(text[start:], first)


def n_bytes_of(text: str) -> int:
    """The number of bytes of a text as UTF-8."""
    if text.isascii():
        return len(text)
    return len(text.encode())


def n_chars_of(path: Path, mark: str) -> int:
    """The number of characters of the documents of a file; a long one shows how far it is.

    Raises UserError as `decoded_blocks` does.
    """
    if path.stat().st_size < LONG_BYTES:
        return sum(len(piece.text) for piece in pieces(path, mark))
    n_chars = 0
    with Progress(f"reading {path.name}", None, "characters") as progress:
        for piece in pieces(path, mark):
            n_chars += len(piece.text)
            progress.advance(len(piece.text))
    return n_chars


def begins_with_mark(path: Path) -> bool:
    """Whether a file begins with a byte order mark."""
    return next(decoded_blocks(path)).text.startswith("\ufeff")


def between(stream: Iterable[Piece], first: int, last: int | None) -> Iterator[Piece]:
    """The characters from `first` to `last`, counted without marks; None: to the end."""
    n_before = 0
    for piece in stream:
        start = max(0, first - n_before)
        stop = len(piece.text)
        if last is not None:
            stop = min(stop, last - n_before)
        n_before += len(piece.text)
        if start <= len(piece.text) and first <= n_before:
            at = piece.first + n_bytes_of(piece.text[:start])
            yield Piece(piece.text[start:stop], at, piece.ends or stop < len(piece.text))
        if last is not None and n_before >= last:
            return


def cut(stream: Iterable[Piece], chunk_chars: int) -> Iterator[Piece]:
    """Chunks of at most `chunk_chars` characters; those of a document joined are the document.

    The cut is after the last white space in the second half of a chunk, where there is some. No
    chunk runs over two documents.
    """
    half = chunk_chars // 2
    rest = Piece("", 0)
    for piece in stream:
        if rest.text:
            piece = Piece(rest.text + piece.text, rest.first, piece.ends)
        text = piece.text
        is_ascii = text.isascii()
        first = piece.first
        start = 0
        while len(text) - start > chunk_chars:
            stop = start + chunk_chars
            if not text[stop - 1].isspace():
                window = text[start + half : stop]
                *before, word = window.rsplit(None, 1)
                if before or window[0].isspace():
                    stop -= len(word)
            chunk = text[start:stop]
            yield Piece(chunk, first)
            if is_ascii:
                first += stop - start
            else:
                first += len(chunk.encode())
            start = stop
        rest = Piece(text[start:], first)
        if piece.ends:
            if rest.text:
                yield Piece(rest.text, first, ends=True)
            rest = Piece("", 0)
    if rest.text:
        yield rest


@dataclass(frozen=True)
class Chunking:
    """How texts are cut, and which chunks are left out.

    Attributes:
        chunk_chars: a chunk has at most so many characters.
        min_chars: of a chunk.
        mark: between documents; "": none.
        max_chars: of a conversation, which is not cut. 0: any.
    """

    chunk_chars: int
    min_chars: int = 0
    mark: str = ""
    max_chars: int = 0

    def fault(self, chunk: str) -> str:
        """Why a chunk is left out; "" where it is not."""
        if len(chunk) < self.min_chars:
            return f"left out: fewer characters than {self.min_chars:g}"
        if self.mark and chunk.isspace():
            return "left out: nothing but white space"
        return ""

    def kept(self, stream: Iterable[Piece]) -> Iterator[Piece]:
        """The chunks of a text, without those that are left out."""
        return (piece for piece in cut(stream, self.chunk_chars) if not self.fault(piece.text))


@dataclass(frozen=True)
class TextRange:
    """Some chunks of a text, as the range of bytes that they lie in, decompressed ones.

    Attributes:
        path: of the file.
        first: the first byte, where a chunk begins.
        last: the byte after them.
        chunking: how the range is cut.
        n_bytes: of the file as it lies on the disk when it was looked at.
    """

    path: Path
    first: int
    last: int
    chunking: Chunking
    n_bytes: int

    @property
    def files(self) -> tuple[Path, ...]:
        """The file alone."""
        return (self.path,)

    def read(self) -> Iterator[dict[str, Any] | Unusable]:
        """The chunks."""
        try:
            check_unchanged(self.path, self.n_bytes)
            stream = pieces(self.path, self.chunking.mark, self.first, self.last)
            for piece in self.chunking.kept(stream):
                yield Example({"text": piece.text}, self.path)
        except UserError as error:
            yield Unusable(str(self.path), str(error))


def check_unchanged(path: Path, n_bytes: int) -> None:
    """Raise UserError where a file is gone, or has another size than before."""
    try:
        now = os.stat(path).st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if now != n_bytes:
        raise UserError(f"{path}: has changed while it was read; start again")


def ranges(
    path: Path,
    first: int,
    last: int | None,
    chunking: Chunking,
    see: Callable[[str, Path], None],
) -> Iterator[TextRange]:
    """The characters from `first` to `last` of a file, as ranges of 256 chunks each.

    see: takes, of every chunk, why it is left out ("" where it is not) and its file.
    """
    n_bytes = path.stat().st_size
    stream = between(pieces(path, chunking.mark), first, last)
    n_kept = 0
    start = end = 0
    for piece in cut(stream, chunking.chunk_chars):
        fault = chunking.fault(piece.text)
        see(fault, path)
        if fault:
            continue
        if n_kept == CHUNK:
            yield TextRange(path, start, end, chunking, n_bytes)
            n_kept = 0
        if not n_kept:
            start = piece.first
        n_kept += 1
        end = piece.first + n_bytes_of(piece.text)
    if n_kept:
        yield TextRange(path, start, end, chunking, n_bytes)
