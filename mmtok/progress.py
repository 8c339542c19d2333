"""Progress of long work: a bar on a terminal, plain lines in a pipe. Always on stderr, so that stdout stays the answer."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Self, TypeVar

from mmtok.terminal import printable, say

T = TypeVar("T")


class Progress:
    """`with Progress("train", total=900) as progress: progress.advance(note="loss 1.2")`.

    label  what is being done
    total  how many units there are, or None when unknown
    unit   what is counted, plural
    done   how many were done before (a run resumed)
    every_s  in a pipe: seconds between two lines at least
    """

    def __init__(self, label: str, total: int | None = None, unit: str = "", done: int = 0, every_s: float = 10.0):
        self.label, self.total, self.unit, self.every_s = printable(label), total, unit, every_s
        self.done, self.note = done, ""
        self._bar = None

    def __enter__(self) -> Self:
        self._start = self._last = time.monotonic()
        if sys.stderr.isatty():
            self._bar = _rich_bar()
            self._task = self._bar.add_task(self.label, total=self.total, completed=self.done, unit=self.unit, note="")
            self._bar.start()
        return self

    def advance(self, n: int = 1, note: str | None = None) -> None:
        """`n` more units are done; `note` (a loss, a file's name) is shown beside them."""
        self.done += n
        self.note = self.note if note is None else printable(note)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self.note)
        elif time.monotonic() - self._last >= self.every_s:
            self._line()

    def _line(self) -> None:
        self._last = time.monotonic()
        count = f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"
        seconds = f"{self._last - self._start:.0f} s"
        say(" ".join(part for part in (f"{self.label}:", count, self.unit, f"({seconds})", self.note) if part))

    def __exit__(self, error, *_) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif error is None:
            self._line()


def track(items: Iterable[T], label: str, unit: str = "", total: int | None = None) -> Iterator[T]:
    """The items themselves, one by one, counted under `label`."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(label, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()


def _rich_bar():
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress as RichProgress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    plain = {name: TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[unit]", "fields[note]")}
    columns = plain["description"], BarColumn(), MofNCompleteColumn(), plain["fields[unit]"], TimeElapsedColumn(), TimeRemainingColumn()
    return RichProgress(*columns, plain["fields[note]"], console=Console(stderr=True))
