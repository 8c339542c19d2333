"""A large JSON object or list read a piece at a time: the elements of lists, one after another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mmtok.errors import UserError, reason_of
from mmtok.io import memory_budget
from mmtok.io.strict_json import RepeatedKey, unique_keys

PIECE = 2**20  # characters that are read at once
SPACE = " \t\r\n"
CHARACTER_BYTES = 40  # of memory, of a character in a value that is being read


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
                    yield key, element
            else:
                yield key, text.value()
            separator = text.expect(",}")
        if text.peek():
            raise text.fault("something follows the object")


def stream_list(path: Path) -> Iterator[Any]:
    """The elements of the list in a file, one after another: only one is in memory.

    Raises UserError, naming the file, for what is no list in JSON.
    """
    with _opened(path) as text:
        if text.peek() != "[":
            raise UserError(
                f"{path}: holds no list in JSON; lines of JSON, one each, are read as .jsonl"
            )
        yield from _elements(text)
        if text.peek():
            raise text.fault("something follows the list; lines of JSON are read as .jsonl")


@contextmanager
def _opened(path: Path) -> Iterator[_Text]:
    """The text of a file. Raises UserError, naming the file, for what cannot be read."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield _Text(path, file)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; is it JSON?") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason_of(error)}") from None


def element_places(path: Path) -> Iterator[tuple[int, int]]:
    """(first byte, number of bytes) of each element of the array in a file.

    Raises UserError, naming the file, for what is no array in JSON.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = _Text(path, file)
            if text.peek() == "\ufeff":
                text.at += 1
            text.expect("[")
            separator = "," if text.peek() != "]" else text.expect("]")
            while separator == ",":
                text.peek()
                start = text.byte()
                text.value()
                yield start, text.byte() - start
                separator = text.expect(",]")
            if text.peek():
                raise text.fault("something follows the array")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; is it JSON?") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason_of(error)}") from None


def _elements(text: _Text) -> Iterator[Any]:
    text.expect("[")
    separator = "," if text.peek() != "]" else text.expect("]")
    while separator == ",":
        yield text.value()
        separator = text.expect(",]")


class _Text:
    """The text of a file from a place on; what was read is dropped."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self.file = file
        self.text = ""
        self.at = 0
        self.n_dropped = 0
        self._n_bytes = 0  # of the characters before `_counted`, dropped ones too
        self._counted = 0
        self.is_whole = False  # whether the rest of the file is in `text`
        self.decoder = json.JSONDecoder(object_pairs_hook=unique_keys)

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
        piece = self.file.read(n)
        self.is_whole = not piece
        self.n_dropped += self.at
        self.text = self.text[self.at :] + piece
        self.at = 0
