"""Documents packed into rows of torch tensors, and taken out again.

Several documents may share a row. `document` tells them apart, `position` restarts at 0 in each,
and attention stays within one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmtok.core.grammar import Stream
from mmtok.core.vocabulary import Vocabulary

FULL = 8  # a row with fewer free positions than this counts as full


@dataclass(frozen=True, eq=False)
class Batch:
    """B rows of L positions. Padding has document -1 and is never predicted.

    What is of one modality has N_m rows: one per position with its frame id, in row-major order.

    Attributes:
        ids: (B, L) int64.
        document: (B, L) int64.
        segment: (B, L) int64.
        modality: (B, L) int64, the index of the signature; -1 for the marks between segments.
        position: (B, L) int64.
        inputs: (B, L) ids as the model reads them; they differ from `ids` only where training
            corrupts its input.
        predict: (B, L) bool: p of this position is part of the loss.
        may_end: (B, L) bool: the end mark is legal here.
        channels: modality -> (N_m, C) int64.
        latents: modality -> (N_m, D) float32.
        channel_mask: modality -> (N_m, C) or (N_m, D) bool: values that the model may not read
            (corrupted input).
        ceiling: modality -> (N_m, C) highest legal frame, where frames are a set.
    """

    ids: Tensor
    document: Tensor
    segment: Tensor
    modality: Tensor
    position: Tensor
    inputs: Tensor
    predict: Tensor
    may_end: Tensor
    channels: dict[str, Tensor]
    channel_mask: dict[str, Tensor]
    ceiling: dict[str, Tensor]
    latents: dict[str, Tensor]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, dict):
                moved[f.name] = {m: x.to(device) for m, x in value.items()}
            else:
                moved[f.name] = value.to(device)
        return Batch(**moved)


@dataclass(frozen=True, eq=False)
class InputMask:
    """What the model may not read of one stream.

    Attributes:
        ids: (L,) bool.
        channels: modality -> (N_m, C) or (N_m, D) bool.
    """

    ids: np.ndarray
    channels: dict[str, np.ndarray]


def plan_rows(lengths: Sequence[int], seq_len: int) -> list[list[int]]:
    """Which documents share a row: first fit, longest first; a pure function of the lengths.

    Rows count as full once they, and all before them, have fewer than FULL positions left. Raises
    ValueError when a document is longer than a row.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    rows: list[list[int]] = []
    n_leaves = 1 << max(0, len(order) - 1).bit_length()
    # a binary tree over all rows there may be: row r is node n_leaves + r, and node k holds the
    # most room under its children 2k and 2k + 1
    room = [seq_len] * (2 * n_leaves)
    n_full = 0  # the first rows, which count as full
    for i in order:
        n = int(lengths[i])
        if n > seq_len:
            raise ValueError(f"a document of {n} positions does not fit into a row of {seq_len}")
        k = 1
        while k < n_leaves:  # to the first row with room
            k = 2 * k
            if room[k] < n:
                k += 1
        if k == n_leaves + len(rows):
            rows.append([])
        rows[k - n_leaves].append(i)
        _set_room(room, k, room[k] - n)
        while n_full < len(rows) and room[n_leaves + n_full] < FULL:
            _set_room(room, n_leaves + n_full, -1)
            n_full += 1
    return rows


def _set_room(room: list[int], k: int, value: int) -> None:
    """Set a leaf of the tree of `plan_rows`, and update the nodes above it."""
    room[k] = value
    while k > 1:
        k //= 2
        most = max(room[2 * k], room[2 * k + 1])
        if room[k] == most:
            return
        room[k] = most


def pack(
    vocabulary: Vocabulary,
    rows: Sequence[Sequence[Stream]],
    seq_len: int | None = None,
    input_masks: Sequence[Sequence[InputMask | None]] | None = None,
) -> Batch:
    """Put streams one after another into rows, padded to `seq_len` (default: the longest row).

    input_masks: in the shape of `rows`, what the model may not read of each stream; it reads masked
    ids as the MASK mark.
    """
    length = seq_len or max((sum(map(len, row)) for row in rows), default=1)
    shape = (len(rows), length)
    filled = {
        "ids": np.full(shape, vocabulary.pad),
        "document": np.full(shape, -1),
        "segment": np.zeros(shape, np.int64),
        "modality": np.full(shape, -1),
        "position": np.zeros(shape, np.int64),
        "predict": np.zeros(shape, bool),
        "may_end": np.zeros(shape, bool),
    }
    masked = np.zeros(shape, bool)
    for r, row in enumerate(rows):
        start = 0
        for d, stream in enumerate(row):
            stop = start + len(stream)
            here = (r, slice(start, stop))
            start = stop
            for name in ("ids", "segment", "modality", "predict", "may_end"):
                filled[name][here] = getattr(stream, name)
            filled["document"][here] = d
            filled["position"][here] = np.arange(len(stream))
            input_mask = input_masks[r][d] if input_masks else None
            if input_mask is not None:
                masked[here] = input_mask.ids
    filled["inputs"] = np.where(masked, vocabulary.mask, filled["ids"])
    tensors: dict[str, Any] = {name: torch.from_numpy(x) for name, x in filled.items()}
    return Batch(**tensors, **_packed_values(vocabulary, rows, input_masks))


def _packed_values(
    vocabulary: Vocabulary,
    rows: Sequence[Sequence[Stream]],
    input_masks: Sequence[Sequence[InputMask | None]] | None,
) -> dict[str, Any]:
    """The fields of `Batch` that hold values by modality."""
    values: dict[str, list[np.ndarray]] = {}
    hidden: dict[str, list[np.ndarray]] = {}
    ceiling: dict[str, list[np.ndarray]] = {}
    for r, row in enumerate(rows):
        for d, stream in enumerate(row):
            input_mask = input_masks[r][d] if input_masks else None
            masks = {} if input_mask is None else input_mask.channels
            for m, x in stream.values.items():
                values.setdefault(m, []).append(x)
                hidden.setdefault(m, []).append(masks.get(m, np.zeros(x.shape, bool)))
            for m, x in stream.ceiling.items():
                ceiling.setdefault(m, []).append(x)
    channels: dict[str, Tensor] = {}
    latents: dict[str, Tensor] = {}
    for m, pieces in values.items():
        joined = np.concatenate(pieces)
        if vocabulary.signatures[m].levels:
            channels[m] = torch.from_numpy(joined.astype(np.int64))
        else:
            latents[m] = torch.from_numpy(joined.astype(np.float32))
    return {
        "channels": channels,
        "latents": latents,
        "channel_mask": _joined(hidden),
        "ceiling": _joined(ceiling),
    }


def _joined(pieces: dict[str, list[np.ndarray]]) -> dict[str, Tensor]:
    return {m: torch.from_numpy(np.concatenate(x)) for m, x in pieces.items()}


def unpack(vocabulary: Vocabulary, batch: Batch) -> list[list[Stream]]:
    """The inverse of `pack`: per row, the streams in it (as they were before input_mask)."""
    values = {m: x.numpy() for m, x in (batch.channels | batch.latents).items()}
    ceilings = {m: x.numpy() for m, x in batch.ceiling.items()}
    names = ("ids", "segment", "modality", "predict", "may_end")
    arrays = {name: getattr(batch, name).numpy() for name in names}
    document = batch.document.numpy()
    n_used = dict.fromkeys(values, 0)
    rows: list[list[Stream]] = []
    for r in range(len(document)):
        rows.append([])
        for d in range(document[r].max() + 1):
            where = document[r] == d
            stream = Stream(**{name: x[r][where] for name, x in arrays.items()})
            frames: dict[str, slice] = {}
            for m in values:
                n = int((stream.ids == vocabulary.span(m)[0]).sum())
                if n:
                    frames[m] = slice(n_used[m], n_used[m] + n)
                n_used[m] += n
            stream = replace(
                stream,
                values={m: values[m][some] for m, some in frames.items()},
                ceiling={m: ceilings[m][some] for m, some in frames.items() if m in ceilings},
            )
            rows[-1].append(stream)
    return rows


def rows_of(batch: Batch, vocabulary: Vocabulary, rows: slice) -> Batch:
    """Some rows of a batch, with the channel values that belong to them."""
    index = torch.arange(len(batch.ids), device=batch.ids.device)[rows]
    is_chosen = torch.zeros(len(batch.ids), dtype=torch.bool, device=batch.ids.device)
    is_chosen[index] = True
    chosen: dict[str, Any] = {}
    for f in fields(batch):
        value = getattr(batch, f.name)
        if not isinstance(value, dict):
            chosen[f.name] = value[index]
            continue
        chosen[f.name] = {}
        for m, x in value.items():
            row_of_frame = (batch.ids == vocabulary.span(m)[0]).nonzero()[:, 0]
            chosen[f.name][m] = x[is_chosen[row_of_frame]]
    return Batch(**chosen)
