"""A large JSON object or list read a piece at a time: the elements of lists, one after another."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mmtok.errors import UserError, reason_of
from mmtok.io import memory_budget
from mmtok.io.compressed import blocks
from mmtok.io.strict_json import RepeatedKey, unique_keys

PIECE = 2**20  # characters that are read at once
SPACE = " \t\r\n"
BYTE_ORDER_MARK = "\ufeff"
CHARACTER_BYTES = 40  # of memory, of a character in a value that is being read


class Element(NamedTuple):
    """An element of a list: its first byte in the decompressed file, its length, its value."""

    first: int
    n_bytes: int
    value: Any


def stream_json(path: Path) -> Iterator[tuple[str, Any]]:
    """The members of the object in a file: (key, value), of a list (key, element) for each element.

    So that only one element is in memory.

    Raises UserError, naming the file, for what is no object in JSON.
    """
    with _opened(path) as text:
        text.expect("{")
        separator = "," if text.peek() != "}" else text.expect("}")
        while separator == ",":
            key = text.value()
            text.expect(":")
            if text.peek() == "[":
                for element in _elements(text):
                    yield key, element.value
            else:
                yield key, text.value()
            separator = text.expect(",}")
        if text.peek():
            raise text.fault("something follows the object")


def stream_list(
    path: Path, first: int = 0, last: int | None = None, numbers_as_text: bool = False
) -> Iterator[Element]:
    """The elements of the list in a file, one after another: only one is in memory.

    Args:
        path: of the file, which may be compressed.
        first: where the first element to read begins; 0 is the beginning of the file.
        last: where one begins that is not read; None: to the end.
        numbers_as_text: leave them as they are in the file.

    Raises:
        UserError: naming the file, for what is no list in JSON.
    """
    with _opened(path, first, last, numbers_as_text) as text:
        if first:
            yield from _rest(text, last is not None)
        elif text.peek() == "[":
            yield from _elements(text, last is not None)
        else:
            raise UserError(
                f"{path}: holds no list in JSON; lines of JSON, one each, are read as .jsonl"
            )
        if text.peek():
            raise text.fault("something follows the list; lines of JSON are read as .jsonl")


@contextmanager
def _opened(
    path: Path, first: int = 0, last: int | None = None, numbers_as_text: bool = False
) -> Iterator[_Text]:
    """The text of a file. Raises UserError, naming the file, for what cannot be read."""
    kinds: dict[str, Any] = {}
    if numbers_as_text:
        kinds = {"parse_float": str, "parse_int": str, "parse_constant": str}
    decoder = json.JSONDecoder(object_pairs_hook=unique_keys, **kinds)
    pieces = codecs.iterdecode(blocks(path, first, last), "utf-8")
    try:
        text = _Text(path, pieces, first, decoder)
        if text.peek() == BYTE_ORDER_MARK:
            text.at += 1
        yield text
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; is it JSON?") from None


def _elements(text: _Text, may_stop: bool = False) -> Iterator[Element]:
    """The elements of a list from its bracket on; may_stop: the text may end before another."""
    text.expect("[")
    if text.peek() == "]":
        text.expect("]")
        return
    yield from _rest(text, may_stop)


def _rest(text: _Text, may_stop: bool) -> Iterator[Element]:
    separator = ","
    while separator == "," and (text.peek() or not may_stop):
        first = text.byte()
        value = text.value()
        yield Element(first, text.byte() - first, value)
        separator = text.expect(",]")


class _Text:
    """The text of a file from a byte on; what was read is dropped."""

    def __init__(
        self, path: Path, pieces: Iterator[str], first: int, decoder: json.JSONDecoder
    ) -> None:
        self.path = path
        self.pieces = pieces
        self.decoder = decoder
        self.text = ""
        self.at = 0
        self.n_dropped = 0
        self._n_bytes = first  # and those of the characters before `_counted`, dropped ones too
        self._counted = 0
        self.is_whole = False  # whether the rest of the file is in `text`

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in SPACE:
                    return self.text[self.at]
                self.at += 1
            if self.is_whole:
                return ""
            self._read_on(PIECE)

    def expect(self, characters: str) -> str:
        """The next character, which is one of these. Raises UserError for another."""
        found = self.peek()
        if not found or found not in characters:
            wanted = " or ".join(characters)
            raise self.fault(f"expected {wanted}, found {found or 'the end'}")
        self.at += 1
        return found

    def value(self) -> Any:
        """The next value, as Python has it."""
        self.peek()
        n_more = PIECE
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except RecursionError:
                raise self.fault("nested too deeply") from None
            except ValueError as error:
                if self.is_whole or isinstance(error, RepeatedKey):
                    raise self.fault(reason_of(error)) from None
            else:
                if end < len(self.text) or self.is_whole:  # a number may go on in the next piece
                    self.at = end
                    return value
            memory_budget.check(CHARACTER_BYTES * (len(self.text) + n_more), self.path, "a value")
            self._read_on(n_more)
            n_more *= 2

    def byte(self) -> int:
        """The number of bytes before here, where they are counted from the beginning."""
        self._n_bytes += len(self.text[self._counted : self.at].encode())
        self._counted = self.at
        return self._n_bytes

    def fault(self, what: str) -> UserError:
        """The error to raise here."""
        return UserError(f"{self.path}: not JSON at character {self.n_dropped + self.at:,}: {what}")

    def _read_on(self, n: int) -> None:
        self.byte()
        self._counted = 0
        read = [self.text[self.at :]]
        while n > 0 and not self.is_whole:
            read.append(next(self.pieces, ""))
            n -= len(read[-1])
            self.is_whole = not read[-1]
        self.n_dropped += self.at
        self.text = "".join(read)
        self.at = 0
