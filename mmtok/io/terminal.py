r"""Standard output and standard error: the one place that prints.

Text of the data (a file's name, a caption, a sampled text) may hold escape sequences, which a
terminal obeys: they move its cursor, recolour it, set its title. Here every control character is
written as its escape, `\x1b`, wherever the output goes.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

JOINERS = "\u200c\u200d"  # of Persian, Indian scripts and emoji: they only shape letters
STDOUT = 1  # its number in every process
STREAMS = ("stdin", "stdout", "stderr")  # by their numbers
closed: set[str] = set()  # the streams that the process was started without


def printable(text: str, keep: str = "") -> str:
    """Text with controls, newlines, changes of direction and surrogates as escapes.

    keep: characters that stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        c if _is_visible(c) or c in keep else c.encode("unicode_escape").decode() for c in text
    )


def _is_visible(c: str) -> bool:
    return c.isprintable() or c in JOINERS or unicodedata.category(c) == "Zs"


def lines_text(lines: Iterable[str]) -> str:
    """Lines as one text; newlines within a line are shown as escapes."""
    return "\n".join(map(printable, lines))


def print_answer(line: object) -> None:
    """One line of an answer, on standard output."""
    _answer(printable(str(line)) + "\n")


def print_answer_lines(text: str) -> None:
    """An answer of several lines, on standard output."""
    _answer(printable(text, keep="\n") + "\n")


def _answer(text: str) -> None:
    """Write to standard output.

    Raises OSError that names it where it takes no more (a full disk); from then on nothing is
    written to it.
    """
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        drop(sys.stdout)
        raise OSError(error.errno, error.strerror, "standard output") from None


def print_status(line: str) -> None:
    """One line about the work, on standard error.

    Where that takes no more (a full disk) the work goes on in silence.
    """
    try:
        print(printable(line), file=sys.stderr, flush=True)
    except BrokenPipeError:
        raise
    except OSError:
        drop(sys.stderr)


def print_answer_piece(text: str) -> None:
    """A piece of a text, on standard output at once; newlines and tabs stay as they are."""
    _answer(printable(text, keep="\n\t"))


def write_raw(content: bytes) -> None:
    """Bytes as they are, on standard output at once: for a pipe or a file, not for a terminal."""
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def open_streams() -> None:
    """Open each standard stream that the process was started without (`>&-`) as /dev/null.

    Else the next file that is opened would have its number, and what is printed would go into it.
    Characters that the encoding of a stream lacks are written as escapes.
    """
    for number, name in enumerate(STREAMS):
        try:
            os.fstat(number)
        except OSError:
            closed.add(name)
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            stream = open(number, mode, closefd=False)  # noqa: SIM115 - open until the process ends
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def silenced_stdout() -> Iterator[None]:
    """What a library in C prints does not reach standard output, which is the answer's."""
    sys.stdout.flush()
    kept = os.dup(STDOUT)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, STDOUT)
    try:
        yield
    finally:
        os.dup2(kept, STDOUT)
        os.close(nowhere)
        os.close(kept)


def drop(stream: TextIO) -> None:
    """Send what a stream still holds, and cannot write, to /dev/null."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
