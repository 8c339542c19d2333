"""Values, names and counts as messages quote them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST_CHARS = 80  # of one value


def shown(value: Any) -> str:
    """A wrong value as a message quotes it, cut where it is long."""
    return _cut(repr(value))


def listed(names: Sequence[object], most: int = 10) -> str:
    """Names as a message lists them: a, b, c and 7 more, each cut where it is long."""
    text = ", ".join(_cut(str(name)) for name in names[:most])
    if len(names) > most:
        text += f" and {len(names) - most:,} more"
    return text


def counted(n: int, noun: str) -> str:
    """A number with its noun, which takes an s in the plural: 1 row, 2,000 rows."""
    if n == 1:
        return f"{n:,} {noun}"
    return f"{n:,} {noun}s"


def _cut(text: str) -> str:
    if len(text) <= MOST_CHARS:
        return text
    return f"{text[:MOST_CHARS]}..."
