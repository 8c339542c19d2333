"""Which documents of a batch are to have like vectors: those of one example, and equal signals."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import torch

from mmtok.core.batch import Batch
from mmtok.core.grammar import Stream

Mark = tuple[int, int, int]  # of a document of a contrast: file, row, number of the field


def equal_groups(
    rows: Sequence[Sequence[Stream]], marks: Sequence[Sequence[Mark | None]]
) -> tuple[list[list[int]], list[list[int]]]:
    """The group and the field of each document of each row; -1 for those of tasks.

    Documents of one example are of one group, and so are equal documents. Groups are what both
    join, however many steps it takes.
    """
    parents: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        while parents.setdefault(key, key) != key:
            parents[key] = key = parents[parents[key]]
        return key

    fields = []
    roots = []
    for streams, marked in zip(rows, marks, strict=True):
        fields.append([-1 if mark is None else mark[2] for mark in marked])
        keys: list[Hashable | None] = []
        for stream, mark in zip(streams, marked, strict=True):
            if mark is None:
                keys.append(None)
                continue
            key = _content(stream)
            parents[root(key)] = root(mark[:2])
            keys.append(key)
        roots.append(keys)
    numbers: dict[Hashable, int] = {}
    groups = [
        [-1 if key is None else numbers.setdefault(root(key), len(numbers)) for key in keys]
        for keys in roots
    ]
    return groups, fields


def _content(stream: Stream) -> Hashable:
    """What two documents have in common if and only if they are equal."""
    values = ((m, x.tobytes()) for m, x in sorted(stream.values.items()))
    return (stream.ids.tobytes(), *values)


def with_groups(
    batch: Batch, groups: Sequence[Sequence[int]], fields: Sequence[Sequence[int]]
) -> Batch:
    """The batch with the group and the field of each document, by rows, at all its positions."""
    return replace(batch, group=_spread(batch, groups), field=_spread(batch, fields))


def _spread(batch: Batch, of_documents: Sequence[Sequence[int]]) -> torch.Tensor:
    """(B, L): a document's number at its positions, -1 at the padding."""
    document = batch.document.numpy()
    spread = [np.array([*row, -1])[document[r]] for r, row in enumerate(of_documents)]
    return torch.from_numpy(np.stack(spread).astype(np.int64))
