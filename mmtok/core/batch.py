"""Batch: documents packed into rows of torch tensors, and taken out again.

Rows never mix documents: `document` tells them apart, `position` restarts at 0 in each, and
attention stays within one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from mmtok.core.vocabulary import Stream, Vocabulary

FULL = 8  # positions: what is left in a row is not sought for after that


@dataclass(frozen=True, eq=False)
class Batch:
    """B rows of L positions. Padding has document -1 and is never predicted.

    ids, document, segment, modality, position  (B, L) int64; modality is the signature's index, -1
    between segments
    inputs        (B, L) ids as the model reads them; they differ from `ids` only where training
                  corrupts its input
    predict       (B, L) bool: p of this position is part of the loss
    may_end       (B, L) bool: the end mark is legal here
    channels      modality -> (N_m, C) int64, in row-major stream order of the positions whose id is
                  m's frame id
    channel_mask  modality -> (N_m, C) or (N_m, D) bool: channel values and latents that the model
                  may not read (corrupted input)
    ceiling       modality -> (N_m, C) highest legal frame, where frames are a set in falling order
    latents       modality -> (N_m, D) float32
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
        move = lambda x: (
            {k: v.to(device) for k, v in x.items()} if isinstance(x, dict) else x.to(device)
        )
        return Batch(**{f.name: move(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True, eq=False)
class Corruption:
    """What the model may not read of one stream: `ids` (L,) bool, `channels` modality -> (N_m, C)
    or (N_m, D) bool.
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
    # a tree over the rows, those not yet opened too: node k holds the most room under nodes 2k and
    # 2k + 1; row r is node n_leaves + r
    room = [seq_len] * (2 * n_leaves)
    n_full = 0  # rows in front that count as full
    for i in order:
        n, k = int(lengths[i]), 1
        if n > seq_len:
            raise ValueError(f"a document of {n} positions does not fit into a row of {seq_len}")
        while k < n_leaves:  # to the first row with room
            k = 2 * k if room[2 * k] >= n else 2 * k + 1
        if k == n_leaves + len(rows):
            rows.append([])
        rows[k - n_leaves].append(i)
        _set_room(room, k, room[k] - n)
        while n_full < len(rows) and room[n_leaves + n_full] < FULL:
            _set_room(room, n_leaves + n_full, -1)
            n_full += 1
    return rows


def _set_room(room: list[int], k: int, value: int) -> None:
    """Change a leaf of the tree of `plan_rows`, and the nodes above it as far as they change."""
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
    corruptions: Sequence[Sequence[Corruption | None]] | None = None,
) -> Batch:
    """Lay streams side by side in rows, padded to `seq_len` (default: the longest row).

    corruptions: as `rows`, what the model may not read of each stream; masked ids read as the MASK
    mark.
    """
    length = seq_len or max((sum(len(s) for s in row) for row in rows), default=1)
    shape = (len(rows), length)
    ids, document, modality = np.full(shape, vocabulary.pad), np.full(shape, -1), np.full(shape, -1)
    segment, position = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    predict, may_end, masked = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, bool)
    values: dict[str, list] = {}
    ceiling: dict[str, list] = {}
    channel_mask: dict[str, list] = {}
    for r, row in enumerate(rows):
        start = 0
        for d, stream in enumerate(row):
            here = (r, slice(start, start := start + len(stream)))
            ids[here], document[here], segment[here], modality[here] = (
                stream.ids,
                d,
                stream.segment,
                stream.modality,
            )
            position[here], predict[here], may_end[here] = (
                np.arange(len(stream)),
                stream.predict,
                stream.may_end,
            )
            corruption = corruptions[r][d] if corruptions else None
            if corruption is not None:
                masked[here] = corruption.ids
            for m, x in stream.values.items():
                values.setdefault(m, []).append(x)
                hidden = None if corruption is None else corruption.channels.get(m)
                channel_mask.setdefault(m, []).append(
                    np.zeros(x.shape, bool) if hidden is None else hidden
                )
            for m, x in stream.ceiling.items():
                ceiling.setdefault(m, []).append(x)
    tensor = lambda x: torch.from_numpy(np.ascontiguousarray(x))
    joined = {m: np.concatenate(x) for m, x in values.items()}
    is_code = {m: bool(vocabulary.signatures[m].levels) for m in joined}
    return Batch(
        ids=tensor(ids),
        document=tensor(document),
        segment=tensor(segment),
        modality=tensor(modality),
        position=tensor(position),
        inputs=tensor(np.where(masked, vocabulary.mask, ids)),
        predict=tensor(predict),
        may_end=tensor(may_end),
        channels={m: tensor(x.astype(np.int64)) for m, x in joined.items() if is_code[m]},
        channel_mask={m: tensor(np.concatenate(channel_mask[m])) for m in joined},
        ceiling={m: tensor(np.concatenate(x)) for m, x in ceiling.items()},
        latents={m: tensor(x.astype(np.float32)) for m, x in joined.items() if not is_code[m]},
    )


def unpack(vocabulary: Vocabulary, batch: Batch) -> list[list[Stream]]:
    """The inverse of `pack`: per row, the streams in it (as they were before corruption)."""
    rows: list[list[Stream]] = []
    used: dict[str, int] = {}
    whole = {k: v.numpy() for k, v in (batch.channels | batch.latents).items()}
    arrays = {
        k: getattr(batch, k).numpy() for k in ("ids", "segment", "modality", "predict", "may_end")
    }
    document = batch.document.numpy()
    for r in range(len(document)):
        rows.append([])
        for d in range(document[r].max() + 1):
            where = document[r] == d
            stream = Stream(**{k: x[r][where] for k, x in arrays.items()})
            values, ceiling = {}, {}
            for m, x in whole.items():
                n = int((stream.ids == vocabulary.span(m)[0]).sum())
                a = used.get(m, 0)
                used[m] = a + n
                if n:
                    values[m] = x[a : a + n]
                    if m in batch.ceiling:
                        ceiling[m] = batch.ceiling[m][a : a + n].numpy()
            rows[-1].append(replace(stream, values=values, ceiling=ceiling))
    return rows


def rows_of(batch: Batch, vocabulary: Vocabulary, rows: slice) -> Batch:
    """Some rows of a batch, with the channel values that belong to them."""
    index = torch.arange(len(batch.ids), device=batch.ids.device)[rows]
    chosen = torch.zeros(len(batch.ids), dtype=torch.bool, device=batch.ids.device)
    chosen[index] = True

    def select(name: str):
        value = getattr(batch, name)
        if not isinstance(value, dict):
            return value[index]
        owner = {
            m: (batch.ids == vocabulary.span(m)[0]).nonzero()[:, 0] for m in value
        }  # the row of every frame
        return {m: x[chosen[owner[m]]] for m, x in value.items()}

    return Batch(**{f.name: select(f.name) for f in fields(batch)})
