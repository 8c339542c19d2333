"""Leaks between splits: held-out examples whose content is in training too, under any name.

Files are compared by their size first, those of one size by some bytes from the middle, and only
those that are still alike as a whole. So a corpus without copies costs a look at each file's entry.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmtok.errors import UserError
from mmtok.io.tally import Tally
from mmtok.sources.rows import hash_of
from mmtok.sources.screen import Tolerance

FEW_CHARS = 32  # texts with fewer repeat by nature
MIDDLE_BYTES = 4096
PIECE_BYTES = 2**20  # of a file that is read as a whole


class FilePart(NamedTuple):
    """Bytes in a file, such as a member of a tar."""

    path: str
    start: int
    n_bytes: int


# what an example holds: a file by its path, a part of one, or a hash of what is at hand; None:
# unknown, and compared with nothing
Content = str | FilePart | int | None


def _part(content: str | FilePart) -> FilePart:
    if isinstance(content, FilePart):
        return content
    return FilePart(content, 0, os.stat(content).st_size)


def _size(content: Content) -> Hashable:
    if content is None:
        return None
    if isinstance(content, int):
        return "hash", content
    return _part(content).n_bytes


def _middle(content: Content) -> Hashable:
    if content is None or isinstance(content, int):
        return content
    part = _part(content)
    with open(part.path, "rb") as file:
        file.seek(part.start + max(0, part.n_bytes - MIDDLE_BYTES) // 2)
        return file.read(min(MIDDLE_BYTES, part.n_bytes))


def _whole(content: Content) -> Hashable:
    if content is None or isinstance(content, int):
        return content
    part = _part(content)
    digest = hashlib.blake2b(digest_size=16)
    with open(part.path, "rb") as file:
        file.seek(part.start)
        left = part.n_bytes
        while left and (piece := file.read(min(PIECE_BYTES, left))):
            digest.update(piece)
            left -= len(piece)
    return digest.digest()


def equal_contents(contents: Sequence[Content], sides: Sequence[int]) -> list[list[int]]:
    """Groups of indices whose contents are equal, of those groups that lie on several sides.

    What cannot be read, or is empty, is equal to nothing.
    """
    groups: list[Sequence[int]] = [range(len(contents))]
    for key in (_size, _middle, _whole):
        groups = [
            finer
            for group in groups
            for finer in _split(group, contents, key)
            if _mixed(finer, sides)
        ]
    return [list(group) for group in groups]


def numbered_by_content(contents: Sequence[Content]) -> np.ndarray:
    """(N,) a number for each content: the index of the first that is equal to it."""
    numbers = np.arange(len(contents))
    for group in equal_contents(contents, range(len(contents))):
        numbers[group] = group[0]
    return numbers


def _split(
    group: Sequence[int], contents: Sequence[Content], key: Callable[[Content], Hashable]
) -> list[list[int]]:
    """Those of a group that are alike in a key, where several are."""
    firsts: dict[Hashable, int] = {}  # mostly there are no others
    found: dict[Hashable, list[int]] = {}
    for i in group:
        try:
            value = key(contents[i])
        except OSError:
            continue  # reading it says so
        if not value:
            continue
        first = firsts.setdefault(value, i)
        if first != i:
            found.setdefault(value, [first]).append(i)
    return list(found.values())


def _mixed(group: Sequence[int], sides: Sequence[int]) -> bool:
    return any(sides[i] != sides[group[0]] for i in group)


def check_leaks(
    train: Sequence[Content],
    heldout: Sequence[Content],
    name: Callable[[int], str],
    tolerance: Tolerance,
    unit: str,
) -> None:
    """Count the held-out examples whose content training has too, and say so.

    Args:
        train: what the training examples hold.
        heldout: likewise.
        name: of a held-out example, in messages.
        tolerance: says how many there may be.
        unit: what examples are called, in the plural.

    Raises UserError where they are more than `max_leak_share`.
    """
    contents = [*train, *heldout]
    sides = [0] * len(train) + [1] * len(heldout)
    groups = equal_contents(contents, sides)
    found = sorted(i - len(train) for group in groups for i in group if sides[i])
    if found:
        refuse_leaks(len(found), len(heldout), name(found[0]), tolerance, unit)


def content_of_signals(signals: Sequence[Any]) -> Content:
    """What an example without files holds, texts, jets and numbers; None for nothing but words.

    Short texts repeat by nature: names, classes, numbers.
    """
    is_words = all(isinstance(signal, (str, float)) for signal in signals)
    if is_words and sum(len(str(signal)) for signal in signals) < FEW_CHARS:
        return None
    parts = []
    for signal in signals:
        if isinstance(signal, np.ndarray):
            parts.append(signal.tobytes())
        else:
            parts.append(str(signal).encode("utf-8", "surrogatepass"))
    return hash_of(*parts)


def refuse_leaks(n: int, n_heldout: int, first: str, tolerance: Tolerance, unit: str) -> None:
    """Say that n held-out examples are in training too.

    Raises UserError where they are more than `max_leak_share`.
    """
    if n > tolerance.max_leak_share * n_heldout:
        raise UserError(
            f"{first}: held out, and its content is in training too, as is that of {n:,} of"
            f" {n_heldout:,} held-out {unit}; remove the copies, or set max_leak_share"
        )
    with Tally(f"held-out {unit}") as tally:
        tally.count(n_heldout)
        tally.add("of a content that training has too", first, n)
