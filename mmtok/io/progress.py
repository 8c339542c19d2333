"""Progress of long work: a bar on a terminal, plain lines in a pipe.

Always on stderr, so that stdout stays the answer.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Self, TypeVar

from mmtok.io.terminal import print_status, printable

T = TypeVar("T")
WINDOW = 100  # the pace is the mean of the last advances, at most so many
LEAST = 3  # and at least so many
WARM = 3.0  # the first ones do not count while they take so many times as long as any later one


class Pace:
    """Seconds per unit: the mean of the last advances, without warm-up.

    The first step of a training compiles and fills caches, so it says nothing of the others. What
    takes long now and then (a checkpoint is written) does count, at its share.
    """

    def __init__(self) -> None:
        # (units, seconds) of each advance
        self._last: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    def add(self, units: int, seconds: float) -> None:
        """So many units more took so many seconds."""
        self._last.append((units, seconds))

    @property
    def seconds(self) -> float | None:
        """Per unit; None while too few were done to tell."""
        kept = list(self._last)
        while len(kept) > LEAST and _each(kept[0]) > WARM * max(map(_each, kept[1:])):
            del kept[0]
        if len(kept) < LEAST:
            return None
        return sum(seconds for _, seconds in kept) / sum(units for units, _ in kept)


def _each(advance: tuple[int, float]) -> float:
    units, seconds = advance
    return seconds / units


def span_text(seconds: float) -> str:
    """A time in words, as exact as an estimate can be: 45 s, 14 min, 3 h 20 min, 2.5 days."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{seconds / 86400:.1f} days"


class Progress:
    """`with Progress("train", total=900) as progress: progress.advance(note="loss 1.2")`.

    Attributes:
        label: what is being done.
        total: about how many units there are, or None when unknown; it grows with what is done.
        unit: what is counted, plural.
        done: how many were done before (a run resumed).
        every_s: in a pipe: seconds between two lines at least.
        quiet: show nothing.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        unit: str = "",
        done: int = 0,
        every_s: float = 10.0,
        quiet: bool = False,
    ) -> None:
        self.label = printable(label)
        self.total = total
        self.unit = unit
        self.every_s = every_s
        self.quiet = quiet
        self.done = done
        self.note = ""
        self.pace = Pace()
        self._bar: Any = None
        self._said: tuple[int, str] | None = None  # of the last line

    def __enter__(self) -> Self:
        self._start = self._last = self._advanced = time.monotonic()
        if sys.stderr.isatty() and not self.quiet:
            self._bar = _rich_bar()
            self._task = self._bar.add_task(
                self.label, total=self.total, completed=self.done, unit=self.unit, left="", note=""
            )
            self._bar.start()
        return self

    def advance(self, n: int = 1, note: str | None = None) -> None:
        """`n` more units are done; `note` (a loss, a file's name) is shown beside them."""
        self.done += n
        if self.total is not None:
            self.total = max(self.total, self.done)
        if note is not None:
            self.note = printable(note)
        if n > 0:
            now = time.monotonic()
            self.pace.add(n, now - self._advanced)
            self._advanced = now
        if self._bar is not None:
            self._bar.update(
                self._task,
                total=self.total,
                completed=self.done,
                left=self.left,
                note=self.note,
            )
        elif time.monotonic() - self._last >= self.every_s:
            self._line()

    @property
    def left(self) -> str:
        """The time left, as in "about 4 min left"; empty at the end and while it is unknown."""
        pace = self.pace.seconds
        if self.total is None or self.done >= self.total or pace is None:
            return ""
        return f"about {span_text(pace * (self.total - self.done))} left"

    def _line(self) -> None:
        self._last = time.monotonic()
        self._said = self.done, self.note
        if self.quiet:
            return
        count = f"{self.done}"
        if self.total is not None:
            count += f"/{self.total}"
        times = f"{self._last - self._start:.0f} s"
        if self.left:
            times += f", {self.left}"
        parts = (f"{self.label}:", count, self.unit, f"({times})", self.note)
        print_status(" ".join(part for part in parts if part))

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif error is None and self._said != (self.done, self.note):
            self._line()


def track(items: Iterable[T], label: str, unit: str = "", total: int | None = None) -> Iterator[T]:
    """The items themselves, one by one, counted under `label`."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(label, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as RichProgress

    plain = {
        name: TextColumn(f"{{task.{name}}}", markup=False)
        for name in ("description", "fields[unit]", "fields[left]", "fields[note]")
    }
    columns = (
        plain["description"],
        BarColumn(),
        MofNCompleteColumn(),
        plain["fields[unit]"],
        TimeElapsedColumn(),
    )
    return RichProgress(
        *columns, plain["fields[left]"], plain["fields[note]"], console=Console(stderr=True)
    )
