"""What goes to standard output and standard error: the one place that prints.

Words of data (a file's name, a caption, a sampled text) may hold escape sequences, which a terminal
obeys: they move its cursor, recolour it, set its title. Here every character of control is made
visible as its escape, `\\x1b`, wherever the output goes.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable
from typing import TextIO

JOINERS = (  # of Persian, of Indian scripts and of emoji: they shape letters, and nothing else
    "\u200c\u200d"
)
STREAMS = ("stdin", "stdout", "stderr")  # by their numbers
closed: set[str] = set()  # those that the process was started without


def printable(text: str, keep: str = "") -> str:
    """Text with every character that is no letter, sign or space as its escape: controls, newlines,
    turns of direction, surrogates.

    keep: characters that stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        c if _is_seen(c) or c in keep else c.encode("unicode_escape").decode() for c in text
    )


def _is_seen(c: str) -> bool:
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
    """Raises OSError, naming standard output, where it takes no more (a full disk); from then on
    nothing is written to it.
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

    Where that takes no more (a full disk) the work goes on without a word.
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
    """Bytes as they are, on standard output at once: for a pipe or a file, and for nobody's eyes."""
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def open_streams() -> None:
    """Give each of the three standard streams that the process was started without (`>&-`) an end
    that takes and holds nothing.

    Else the next file that is opened would have its number, and what is printed would go into it.
    Also lets what an encoding has no letters for be shown as an escape.
    """
    for number, name in enumerate(STREAMS):
        try:
            os.fstat(number)
        except OSError:
            closed.add(name)
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115 - as long as the process
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def drop(stream: TextIO) -> None:
    """Let what is still to be written to a stream, and cannot be, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
