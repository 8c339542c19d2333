"""Counts of what was done to signals, reported once: how many of how many, and the first example.

Code that drops, cuts, clips, averages, converts or skips signals takes a `Tally` and adds to it;
the loop over the signals opens one, which reports at its end:

    with Tally("clips") as tally:
        for path in files:
            tally.count()
            tally.add("resampled from 22,050 to 16,000 Hz", path)

    13,100 of 13,100 clips were resampled from 22,050 to 16,000 Hz (first: clips/LJ001-0001.wav)

Of a single signal it reports `clips/LJ001-0001.wav was resampled from 22,050 to 16,000 Hz`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Self

MOST_KINDS = 8  # that are reported one by one: messages with a file's own size may be many


class Tally:
    """Counts of what was done to signals, reported as warnings.

    Attributes:
        unit: what is counted, in the plural: clips, images, rows.
        reported: what was reported before, and is not again; every pass over the same signals is
            given the same set.
    """

    def __init__(self, unit: str = "files", reported: set[tuple[str, str]] | None = None) -> None:
        self.unit = unit
        self.reported = set() if reported is None else reported
        self.total = 0
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def count(self, n: int = 1) -> None:
        """`n` more signals came by, whether or not anything is done to them."""
        self.total += n

    def add(self, what: str, example: object, n: int = 1) -> None:
        """`n` more signals were `what`: "clipped to 1", "dropped: no transcript".

        example: which signal; the first one is reported.
        """
        self.counts[what] = self.counts.get(what, 0) + n
        self.first.setdefault(what, str(example))

    def as_plain(self) -> dict[str, Any]:
        """What was counted so far, as JSON values: for `merge` in another process, or later."""
        return {"total": self.total, "counts": dict(self.counts), "first": dict(self.first)}

    def merge(self, plain: Mapping[str, Any]) -> None:
        """Add what another tally counted, of signals that come after this one's."""
        self.total += plain["total"]
        for what, n in plain["counts"].items():
            self.add(what, plain["first"][what], n)

    def report(self) -> None:
        """Warn once for each kind of thing that was counted since the last report."""
        kinds = [what for what in self.counts if (self.unit, what) not in self.reported]
        for line in self._lines(kinds):
            warnings.warn(line, stacklevel=2)
        self.reported.update((self.unit, what) for what in kinds)
        self.total = 0
        self.counts.clear()
        self.first.clear()

    def _lines(self, kinds: list[str]) -> list[str]:
        is_one = self.total <= 1 and all(self.counts[what] == 1 for what in kinds)
        if is_one and len({self.first[what] for what in kinds}) == 1:
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
        verb = "was" if n == 1 else "were"
        return f"{n:,} of {total:,} {self.unit} {verb} {what} (first: {self.first[what]})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.report()
