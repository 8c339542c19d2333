"""What was done to signals on the way, counted, and said once: how many of how many, and the first
example.

Whatever drops, cuts, clips, averages, converts or skips takes a `Tally` and adds to it; whoever
goes through the signals opens one, and it speaks when the going is over:

    with Tally("clips") as tally:
        for path in files:
            tally.count()
            tally.add("resampled from 22,050 to 16,000 Hz", path)

    13,100 of 13,100 clips were resampled from 22,050 to 16,000 Hz (first: clips/LJ001-0001.wav)

Of a single signal it says `clips/LJ001-0001.wav was resampled from 22,050 to 16,000 Hz`.
"""

from __future__ import annotations

import warnings
from typing import Self

MOST_KINDS = 8  # that are said one by one: what differs from file to file must not fill the screen


class Tally:
    """Counts of things done to signals, by what was done; said as warnings, which the command line
    prints as notes.

    unit  what is counted, in the plural: clips, images, rows
    said  what was said of these signals before, and is not said again; by default nothing.
          Handed to every pass over the same signals, so that they speak once together
    """

    def __init__(self, unit: str = "files", said: set[tuple[str, str]] | None = None):
        self.unit = unit
        self.said = set() if said is None else said
        self.total = 0
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def count(self, n: int = 1) -> None:
        """`n` more signals were looked at, whether or not anything is done to them."""
        self.total += n

    def add(self, what: str, example: object, n: int = 1) -> None:
        """`n` more signals were `what`, a participle with what belongs to it: "clipped to 1",
        "dropped: no transcript".

        example: which signal, for the first time that it was done.
        """
        self.counts[what] = self.counts.get(what, 0) + n
        self.first.setdefault(what, str(example))

    def report(self) -> None:
        """Say what was counted since the last time, as one warning for each kind of thing, and
        begin anew.
        """
        kinds = [what for what in self.counts if (self.unit, what) not in self.said]
        for line in self._lines(kinds):
            warnings.warn(line, stacklevel=2)
        self.said.update((self.unit, what) for what in kinds)
        self.total = 0
        self.counts.clear()
        self.first.clear()

    def _lines(self, kinds: list[str]) -> list[str]:
        if self.total <= 1 and len({self.first[what] for what in kinds}) == 1:
            return [f"{self.first[kinds[0]]} was {', '.join(kinds)}"]
        lines = [self._line(what) for what in kinds[:MOST_KINDS]]
        if rest := kinds[MOST_KINDS:]:
            n = sum(self.counts[what] for what in rest)
            lines.append(
                f"{len(rest)} more things were done to {n:,} {self.unit}; the first: "
                f"{self.first[rest[0]]} was {rest[0]}"
            )
        return lines

    def _line(self, what: str) -> str:
        n = self.counts[what]
        total = max(self.total, n)
        return (
            f"{n:,} of {total:,} {self.unit} {'was' if n == 1 else 'were'} {what} (first:"
            f" {self.first[what]})"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.report()
