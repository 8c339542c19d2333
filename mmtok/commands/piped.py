"""Pipes in the place of files: `-` among those that are read, and as the one that is written."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmtok.errors import UserError
from mmtok.io import terminal

PIPE = Path("-")
STDIN = "stdin"  # the name of what comes from there
# how files begin that are told by their names
MAGIC = {
    b"PK\x03\x04": ".npz",
    b"\x93NUMPY": ".npy",
    b"PAR1": ".parquet",
    b"\x89HDF": ".h5",
    b"root": ".root",
}


@contextmanager
def spooled(files: Sequence[Path]) -> Iterator[list[Path]]:
    """The files, each that is a pipe replaced by one that holds what came out of it.

    Headers are looked at before signals are read, and a pipe can be read once. `-` is standard
    input. The copies are removed at the end.

    Raises UserError where standard input is a terminal.
    """
    if not any(map(is_pipe, files)):
        yield list(files)
        return
    with tempfile.TemporaryDirectory(prefix="mmtok-") as folder:
        copies: dict[Path, Path] = {}
        for file in filter(is_pipe, files):
            if file not in copies:
                copies[file] = _copied(file, Path(folder) / str(len(copies)))
        try:
            yield [copies.get(file, file) for file in files]
        except UserError as error:
            raise UserError(_with_own_names(str(error), copies)) from None


def _with_own_names(message: str, copies: Mapping[Path, Path]) -> str:
    """A message that calls pipes what they are, and not by their copies."""
    for pipe, copy in copies.items():
        name = "standard input"
        if pipe != PIPE:
            name = str(pipe)
        message = message.replace(str(copy), name)
    return message


def is_pipe(file: Path) -> bool:
    """Whether a file is standard input or a named pipe."""
    return file == PIPE or file.is_fifo()


def _copied(pipe: Path, folder: Path) -> Path:
    """What comes out of a pipe, in a file of a folder."""
    folder.mkdir()
    if pipe != PIPE:
        with open(pipe, "rb") as source, open(folder / pipe.name, "wb") as target:
            shutil.copyfileobj(source, target)
        return folder / pipe.name
    if sys.stdin.isatty():
        raise UserError("-: standard input is a terminal; send a file into it, or name one")
    path = folder / STDIN
    with open(path, "wb") as target:
        shutil.copyfileobj(sys.stdin.buffer, target)
    return path.rename(folder / f"{STDIN}{_suffix_of(path)}")


def _suffix_of(path: Path) -> str:
    """The suffix that says what a file holds; "" where that need not be said."""
    with open(path, "rb") as file:
        head = file.read(max(map(len, MAGIC)))
    return next((suffix for magic, suffix in MAGIC.items() if head.startswith(magic)), "")


def check_stdout() -> None:
    """Raise UserError where standard output cannot take a file's bytes."""
    if "stdout" in terminal.closed:
        raise UserError("-o - writes to standard output, which is closed; name a folder")
    if sys.stdout.isatty():
        raise UserError(
            "-o - writes a file as it is, which is nothing for a terminal; send it into a file or a"
            " pipe, or name a folder"
        )
