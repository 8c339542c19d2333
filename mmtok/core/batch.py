"""Documents packed into rows of torch tensors, and taken out again.

Several documents may share a row. `document` tells them apart, `position` restarts at 0 in each,
and attention stays within one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmtok.core.grammar import Stream
from mmtok.core.runs import Runs, SetPlaces, set_places
from mmtok.core.vocabulary import Vocabulary

ENDS_BLOCK = 64  # the ends of documents are counted in blocks of this many
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
        index: where the things of each modality are; None until `with_index`.
        group: (B, L) int64, of documents that become vectors: which of them say the same; -1
            elsewhere. None where there are none.
        field: (B, L) int64, which field of the examples these documents are.
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
    index: BatchIndex | None = None
    group: Tensor | None = None
    field: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device. From pinned memory to a GPU the host does not wait."""
        to_host = torch.device(device).type == "cpu"

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=not to_host)

        return self._with_each(move)

    def pin_memory(self) -> Batch:
        """The same batch in memory that a GPU can read while the host goes on."""
        return self._with_each(Tensor.pin_memory)

    def _with_each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with function(x) in place of each tensor x."""
        return cast(Batch, _with_each(self, function))


def _with_each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A value with function(x) in place of each tensor x inside it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _with_each(x, function) for key, x in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: _with_each(getattr(value, f.name), function) for f in fields(value)}
        return replace(value, **changed)
    return value


@dataclass(frozen=True, eq=False)
class Places:
    """Where the things of one modality are in a batch.

    Attributes:
        predicted: (P,) places in the flattened batch that are predicted, in order.
        frames: (N_m,) places of its frame ids, a row of its values each.
        framed: (F,) which of `predicted` are frames.
        values: (F,) which rows of the values these are.
        are_segments: whether the predicted places are complete segments of as many frames as the
            signature says, each behind its begin mark.
        runs: the segments of all frames.
        sets: of sets, what is predicted by segments; else None.
    """

    predicted: Tensor
    frames: Tensor
    framed: Tensor
    values: Tensor
    are_segments: bool
    runs: Runs
    sets: SetPlaces | None = None


@dataclass(frozen=True, eq=False)
class BatchIndex:
    """What can be counted in a batch, so that a training step on a GPU need not wait for counts.

    Attributes:
        places: modality -> its places.
        document_ends: (n + 1,) int32: 0, and the ends of all documents and of the padding of each
            row, in the flattened batch. Filled up with the last end to a multiple of 64, so that
            few sizes occur.
        one_per_row: whether each row is one document, maybe followed by padding.
    """

    places: dict[str, Places]
    document_ends: Tensor
    one_per_row: bool


def with_index(batch: Batch, vocabulary: Vocabulary) -> Batch:
    """The batch with its index. On a GPU this waits for the device: do it before the move."""
    if batch.index is not None:
        return batch
    places = {m: _places(batch, vocabulary, i) for i, m in enumerate(vocabulary.signatures)}
    one_per_row = not bool((batch.document > 0).any())
    return replace(batch, index=BatchIndex(places, _document_ends(batch.document), one_per_row))


def _places(batch: Batch, vocabulary: Vocabulary, number: int) -> Places:
    """The places of the modality of this number."""
    m = list(vocabulary.signatures)[number]
    ids = batch.ids.flatten()
    predict = batch.predict.flatten()
    predicted = (predict & (batch.modality.flatten() == number)).nonzero()[:, 0]
    is_frame = ids == vocabulary.span(m)[0]
    frames = is_frame.nonzero()[:, 0]
    places = Places(
        predicted=predicted,
        frames=frames,
        framed=is_frame[predicted].nonzero()[:, 0],
        values=predict[frames].nonzero()[:, 0],
        are_segments=_are_segments(ids, predicted, vocabulary, m),
        runs=Runs.of(_segment_numbers(batch, frames)),
    )
    if not vocabulary.signatures[m].unordered:
        return places
    segments = Runs.of(_segment_numbers(batch, predicted))
    behind_begin = ids[predicted - 1] == vocabulary.begin(m)
    whole = places.runs.number[places.values].unique()
    n_whole = int(torch.bincount(places.runs.number, minlength=places.runs.n)[whole].sum())
    position = batch.position.flatten()[predicted]
    sets = set_places(predicted, places.framed, segments, position, behind_begin, n_whole)
    return replace(places, sets=sets)


def _segment_numbers(batch: Batch, places: Tensor) -> Tensor:
    """Numbers (n,) that tell the segments of these places of the flattened batch apart."""
    length = batch.ids.shape[1]
    documents = places // length * length + batch.document.flatten()[places]
    return documents * length + batch.segment.flatten()[places]


def _are_segments(ids: Tensor, predicted: Tensor, vocabulary: Vocabulary, m: str) -> bool:
    """Whether places of the flattened ids are complete segments; see `Places`."""
    n_frames = vocabulary.signatures[m].frames
    if not n_frames or len(predicted) % n_frames:
        return False
    runs = predicted.unflatten(0, (-1, n_frames))
    begun = ids[runs[:, 0] - 1] == vocabulary.begin(m)
    return bool(begun.all() and (runs.diff(dim=1) == 1).all())


def _document_ends(document: Tensor) -> Tensor:
    """As `BatchIndex.document_ends`, of the documents' numbers (B, L)."""
    n_rows, length = document.shape
    row = torch.arange(n_rows, device=document.device)[:, None]
    numbers = (row * (length + 1) + document).flatten()
    _, lengths = numbers.unique_consecutive(return_counts=True)
    ends = F.pad(lengths.cumsum(0), (1, 0))
    more = -len(ends) % ENDS_BLOCK
    return F.pad(ends, (0, more), value=document.numel()).int()


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
        if f.name == "index" or value is None:
            continue  # the index is of all rows
        if not isinstance(value, dict):
            chosen[f.name] = value[index]
            continue
        chosen[f.name] = {}
        for m, x in value.items():
            row_of_frame = (batch.ids == vocabulary.span(m)[0]).nonzero()[:, 0]
            chosen[f.name][m] = x[is_chosen[row_of_frame]]
    return Batch(**chosen)
