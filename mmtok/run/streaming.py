"""Token files that a process of its own makes while this one trains.

It is a fresh interpreter that makes the first part of every source, then the other parts in order,
as `tokenise` does. It ends with the process that started it, however that ended.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr
from io import TextIOBase
from multiprocessing.connection import Connection
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import torch

from mmtok.data.parts import read_mark, standing_parts
from mmtok.data.tokenise import PartSet
from mmtok.errors import UserError
from mmtok.io.files import remove_leftovers
from mmtok.io.progress import Progress
from mmtok.io.terminal import print_status
from mmtok.io.workers import how_it_ended, sendable, start_interpreter
from mmtok.run.recipe import OF_FILE, Recipe, kinds_of, run_file
from mmtok.run.run import Run
from mmtok.run.tokenise import can_be_shared, finish, parts_of, parts_stand
from mmtok.sources.base import Source

LINE_S = 60.0  # seconds between two lines of progress, beside those of the training
# what the process says: a kind and a value
MADE = "made"  # (source, how many parts)
ALL = "all"  # (source, how many parts), and these are all
NOTE = "note"
LINE = "line"
FAILED = "failed"
DONE = "done"


class TokenStream:
    """The token files of a run as they are made; on rank 0 only.

    Attributes:
        made: how many parts of each source there are, from the first on.
        complete: whether these are all of the source.
    """

    def __init__(self, run: Run) -> None:
        """Start the process, unless all token files are complete."""
        self._folder = run.folder / "tokens"
        self._names = [run.token_path(i).name for i in range(len(run.recipe.sources))]
        marks = [read_mark(run.token_path(i)) for i in range(len(run.recipe.sources))]
        self.made = [mark.parts if mark else 0 for mark in marks]
        self.complete = [mark is not None for mark in marks]
        self._connection: Connection | None = None
        if all(self.complete):
            return
        kinds = [(kind.__module__, kind.__qualname__) for kind in kinds_of(run.recipe)]
        self._process, self._connection = start_interpreter(__name__)
        self._connection.send((str(run.folder), run.recipe.to_json(), kinds))

    @property
    def is_complete(self) -> bool:
        """Whether all token files are made."""
        return all(self.complete)

    def text(self, parts: Iterable[int]) -> str:
        """How many parts of each source, in words."""
        return ", ".join(
            f"{n} of {name}" if not (whole and n == made) else f"all {n} of {name}"
            for name, n, made, whole in zip(
                self._names, parts, self.made, self.complete, strict=True
            )
        )

    def poll(self, wait_s: float = 0.0) -> None:
        """Take in what the process said. Raises its error where it failed."""
        while self._connection is not None and self._connection.poll(wait_s):
            wait_s = 0.0
            try:
                kind, value = self._connection.recv()
            except (EOFError, OSError):
                how = how_it_ended(self._process)
                raise UserError(
                    f"the process that makes the token files ended ({how}); the same command goes"
                    " on from the last checkpoint"
                ) from None
            self._take_in(kind, value)

    def _take_in(self, kind: str, value: Any) -> None:
        if kind in (MADE, ALL):
            i, n = value
            self.made[i] = n
            self.complete[i] = kind == ALL
        elif kind == NOTE:
            warnings.warn(value, stacklevel=2)
        elif kind == LINE:
            print_status(value)
        elif kind == FAILED:
            raise value
        else:
            self.close()

    def wait(self, is_met: Callable[[], bool], line: str) -> None:
        """Wait until a condition is met or all parts are made; says so if that takes time."""
        self.poll()
        if is_met() or self.is_complete:
            return
        print_status(line)
        while not is_met() and not self.is_complete:
            self.poll(1.0)

    def finish(self) -> None:
        """Wait for all token files."""
        self.wait(bool, "all steps are made; the token files that are left are still being made")
        while self._connection is not None:
            self.poll(1.0)

    def close(self) -> None:
        """End the process."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._process.kill()
            self._process.wait()
            remove_leftovers(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ---- in the other process


def serve(file: int) -> None:
    """Make the token files of a run, and say how far they are."""
    connection = Connection(file)
    try:
        folder, text, kinds = connection.recv()
    except EOFError:
        return
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    speaker = _Speaker(connection)
    try:
        with redirect_stderr(_Lines(speaker)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = speaker.note
            recipe = Recipe.from_json(text, [_class_of(*kind) for kind in kinds])
            make_all(recipe, Path(folder), speaker)
    except Exception as error:
        speaker.say(FAILED, sendable(error))
    else:
        speaker.say(DONE)
    threading.Event().wait()  # until the other end is closed, so that nothing said is lost


def _class_of(module: str, name: str) -> type:
    """A class of a recipe, whose file is run where it is none of an importable module.

    Raises UserError for a class that no other process can have.
    """
    try:
        if module.startswith(OF_FILE) and module not in sys.modules:
            run_file(Path(module.removeprefix(OF_FILE)))
        return attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError):
        raise UserError(
            f"--stream: the class {name} of {module} cannot be imported by another process: train"
            " without it"
        ) from None


def _end_with(connection: Connection) -> None:
    """End this process once the connection is closed."""
    try:
        connection.recv_bytes()
    except (EOFError, OSError):
        os._exit(0)


class _Speaker:
    """Says things to the process that trains."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def say(self, kind: str, value: Any = None) -> None:
        """Send a message."""
        try:
            self._connection.send((kind, value))
        except OSError:
            os._exit(0)

    def note(self, message: Warning | str, *_: Any, **more: Any) -> None:
        """Send a warning; stands in for `warnings.showwarning`."""
        self.say(NOTE, str(message))


class _Lines(TextIOBase):
    """A text stream whose lines are sent."""

    def __init__(self, speaker: _Speaker) -> None:
        self._speaker = speaker
        self._begun = ""

    def write(self, text: str) -> int:
        """Send the lines that end in a text."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._speaker.say(LINE, line)
        return len(text)


class _Made:
    """Says how many parts of a source stand, from the first on."""

    def __init__(self, speaker: _Speaker, source: int) -> None:
        self._speaker = speaker
        self._source = source
        self._parts: set[int] = set()
        self.n = 0

    def add(self, part: int) -> None:
        """Count a part."""
        self._parts.add(part)
        before = self.n
        while self.n in self._parts:
            self.n += 1
        if self.n > before:
            self._speaker.say(MADE, (self._source, self.n))


def make_all(recipe: Recipe, folder: Path, speaker: _Speaker) -> None:
    """Make all token files of a run that do not stand: every source's first part, then the rest."""
    run = Run(folder, recipe, torch.device("cpu"))
    made = [_Made(speaker, i) for i in range(len(recipe.sources))]
    left = []
    for i in range(len(recipe.sources)):
        mark = read_mark(run.token_path(i))
        if parts_stand(run.token_path(i)) and mark is not None:
            speaker.say(ALL, (i, mark.parts))
        else:
            left.append(i)
    for i in left:
        _begin(run, i, made[i], len(left) > 1)
    for i in left:
        parts = _set_of(run, i, made[i])
        with _progress(parts, recipe.sources[i]) as progress:
            parts.write(progress)
        finish(run, recipe.sources[i], parts)
        speaker.say(ALL, (i, parts.n_parts))


def _set_of(run: Run, i: int, made: _Made) -> PartSet:
    parts = parts_of(run, i)
    parts.on_made = made.add
    return parts


def _begin(run: Run, i: int, made: _Made, is_one_of_several: bool) -> None:
    """Say which parts of a source stand; make the first one, if that is not done soon anyhow.

    The files behind a part that stands are looked at, where examples are listed without being made.
    """
    parts = _set_of(run, i, made)
    standing = standing_parts(parts.folder, parts.key)
    if standing and can_be_shared(run.recipe.sources[i]):
        parts.look()
    else:
        for k in standing:
            made.add(k)
    if is_one_of_several and not made.n:
        with Progress("", quiet=True) as progress:
            _set_of(run, i, made).begin(progress)


def _progress(parts: PartSet, source: Source) -> Progress:
    label = f"tokenise {type(source).__name__}"
    return Progress(label, parts.listing.n, "examples", every_s=LINE_S)
