"""The grammar: which ids may follow in a stream, and documents written as such streams.

A document is the stream

    DOCUMENT  begin a, frames, end a  begin b, frames, end b  ...

NULL stands in the place of a condition that is left out. A truncated segment has no end mark. The
frames to infill come last, with a HOLE mark in their place:

    begin m, frames, HOLE, frames, end m, FILL, frames, end m

Codes in rows (`Signature.rows`) have the end mark behind each row too, and the first row says how
long all are, unless the signature does; a row without codes is the end of the segment:

    begin m, row, end m, row, end m, end m
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mmtok.core.rows import row_layout
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError

# ---- the state machine


@dataclass(frozen=True)
class State:
    """Where a stream stands. `State()` is the place between two segments.

    Attributes:
        modality: of the segment that is being read, or None between segments.
        left: frames still to come; None when the segment runs until its end mark.
        n_open: HOLE marks whose frames are still to come.
        filling: the frames that are being read are those of a HOLE mark.
        due: the mark that must follow: "document" at the start of a stream, "fill" before the
            frames of a HOLE mark, else "".
        column: of codes in rows, those of the row that is being read.
        columns: codes of every row; 0 in the first row, which is not complete.
    """

    modality: str | None = None
    left: int | None = None
    n_open: int = 0
    filling: bool = False
    due: str = ""
    column: int = 0
    columns: int = 0


START = State(due="document")


def legal_ids(vocabulary: Vocabulary, state: State) -> np.ndarray:
    """Ids over which p is normalised in this state: (n,) int64, sorted.

    HOLE marks, and the mark that cuts a segment short, are never predicted, so they are not listed;
    `advance` accepts them.
    """
    if state.due == "document":
        return np.array([vocabulary.document_mark])
    if state.due == "fill":
        return np.array([vocabulary.fill])
    if state.modality is None:
        return np.array(sorted(_marks_between(vocabulary)))
    ids = np.zeros(0, np.int64)
    if _may_go_on(vocabulary, state):
        banned = vocabulary.signatures[state.modality].banned
        ids = np.delete(np.array(vocabulary.span(state.modality), np.int64), banned)
    if _may_end(vocabulary, state):
        ids = np.append(ids, vocabulary.end(state.modality))
    return np.sort(ids)


def advance(vocabulary: Vocabulary, state: State, id: int) -> State:
    """The state after reading `id`. Raises ValueError when no valid stream continues so."""
    if not _is_legal(vocabulary, state, id):
        return _advance_unpredicted(vocabulary, state, id)
    if state.due == "document":
        return State()
    if state.due == "fill":
        return replace(state, filling=True, due="")
    if state.modality is None:
        return _opened(vocabulary, id)
    if vocabulary.signatures[state.modality].rows:
        return _advance_in_rows(state, id == vocabulary.end(state.modality))
    if id != vocabulary.end(state.modality):
        return state if state.left is None else replace(state, left=state.left - 1)
    n_open = state.n_open - state.filling
    return State(state.modality, state.left, n_open, due="fill") if n_open else State()


def _advance_in_rows(state: State, is_end: bool) -> State:
    """The state after a code of a row, or after an end mark."""
    if not is_end:
        return replace(state, column=state.column + 1)
    if state.column == 0:
        return State()
    return replace(state, column=0, columns=state.column)


def _advance_unpredicted(vocabulary: Vocabulary, state: State, id: int) -> State:
    """The state after a mark that is given and never predicted: HOLE, or what follows a cut."""
    inside = state.modality is not None and not state.due
    if inside and not state.filling and id == vocabulary.hole:
        return replace(state, n_open=state.n_open + 1)
    if inside and not state.n_open and id in _marks_between(vocabulary):
        return _opened(vocabulary, id)  # a truncated segment stops without its end mark
    raise ValueError(f"id {id} cannot follow in state {state}")


def _opened(vocabulary: Vocabulary, id: int) -> State:
    """The state after a mark between segments: a begin mark, or NULL."""
    for modality, signature in vocabulary.signatures.items():
        if id == vocabulary.begin(modality):
            return State(modality, signature.frames)
    return State()


def _marks_between(vocabulary: Vocabulary) -> list[int]:
    """Marks that may stand between segments."""
    return [vocabulary.null, *map(vocabulary.begin, vocabulary.signatures)]


def _is_legal(vocabulary: Vocabulary, state: State, id: int) -> bool:
    """`id in legal_ids(vocabulary, state)`, without listing a whole codebook."""
    if state.due or state.modality is None:
        return id in legal_ids(vocabulary, state)
    span = vocabulary.span(state.modality)
    if id in span:
        banned = vocabulary.signatures[state.modality].banned
        return _may_go_on(vocabulary, state) and id - span[0] not in banned
    return id == vocabulary.end(state.modality) and _may_end(vocabulary, state)


def _columns(vocabulary: Vocabulary, state: State) -> int:
    """Codes of the row that is being read, as far as the signature or the first row says it."""
    return state.columns or vocabulary.signatures[state.modality or ""].columns


def _may_go_on(vocabulary: Vocabulary, state: State) -> bool:
    row_is_full = 0 < _columns(vocabulary, state) == state.column
    return state.left != 0 and not row_is_full


def _may_end(vocabulary: Vocabulary, state: State) -> bool:
    if vocabulary.signatures[state.modality or ""].rows:
        row_may_end = _columns(vocabulary, state) in (0, state.column) and state.column > 0
        picture_may_end = state.columns > 0 and state.column == 0
        return row_may_end or picture_may_end
    if state.left in (None, 0):
        return True
    # frames are left, but the fill of a later HOLE mark can still take them
    return state.n_open > state.filling


# ---- documents to streams


@dataclass(frozen=True, eq=False)
class Stream:
    """One document as arrays over its L positions; what `Batch` packs.

    Attributes:
        ids: (L,) integers.
        segment: (L,) integers.
        modality: (L,) integers, the index of the signature; -1 for DOCUMENT and NULL.
        predict: (L,) bool: p of this position is part of the score.
        may_end: (L,) bool: the end mark is among the ids that are legal here.
        values: frames of many-channel and latent modalities, each (N_m, C) or (N_m, D), in stream
            order.
        ceiling: of modalities whose frames are a set, (N_m, C): the highest legal frame in
            lexicographic order.
    """

    ids: np.ndarray
    segment: np.ndarray
    modality: np.ndarray
    predict: np.ndarray
    may_end: np.ndarray
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    ceiling: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class _Part:
    """Consecutive positions that share all but their ids and, of frames, what is predicted."""

    ids: np.ndarray
    modality: int
    segment: int
    predict: bool | np.ndarray = False
    may_end: bool | np.ndarray = False


def to_stream(vocabulary: Vocabulary, document: Document) -> Stream:
    """Write a document as ids and values.

    Raises UserError for a segment that does not fit its signature.
    """
    parts = [_Part(np.array([vocabulary.document_mark]), -1, 0)]
    pieces: dict[str, list[np.ndarray]] = {}
    for i, (segment, predict) in enumerate(zip(document.segments, document.predict, strict=True)):
        if segment is None:
            parts.append(_Part(np.array([vocabulary.null]), -1, i))
            continue
        is_open = document.open_end and i == len(document.segments) - 1
        closed = not is_open and not segment.truncated
        _check_segment(vocabulary, segment, complete=closed)
        n_filled = document.n_filled if is_open else len(segment.infill_spans)
        parts += _segment_parts(vocabulary, segment, i, predict, closed, n_filled)
        if not vocabulary.signatures[segment.modality].one_channel:
            spans = _visible(segment) + list(segment.infill_spans[:n_filled])
            frames = [segment.values[a:b] for a, b in spans]
            pieces.setdefault(segment.modality, []).extend(frames)
    sizes = [len(part.ids) for part in parts]
    return Stream(
        ids=np.concatenate([part.ids for part in parts]).astype(np.int64),
        segment=np.repeat(np.array([part.segment for part in parts], np.int64), sizes),
        modality=np.repeat(np.array([part.modality for part in parts], np.int64), sizes),
        predict=_concatenated([part.predict for part in parts], sizes),
        may_end=_concatenated([part.may_end for part in parts], sizes),
        values={m: np.concatenate(frames) for m, frames in pieces.items()},
        ceiling={
            m: _ceiling(vocabulary.signatures[m], frames)
            for m, frames in pieces.items()
            if vocabulary.signatures[m].descending
        },
    )


def _concatenated(values: Sequence[bool | np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """One after another, values that are one for a part repeated over it.

    (np.broadcast_to takes longer than all else that short documents need.)
    """
    parts = [
        value if isinstance(value, np.ndarray) else np.full(n, value)
        for value, n in zip(values, sizes, strict=True)
    ]
    return np.concatenate(parts)


def _check_segment(vocabulary: Vocabulary, segment: Segment, complete: bool) -> None:
    """Raise UserError unless the segment fits its signature; complete: it has all its frames."""
    m = segment.modality
    if m not in vocabulary.signatures:
        known = ", ".join(vocabulary.signatures)
        raise UserError(f"modality {m!r} is not in this vocabulary, which has {known}")
    signature = vocabulary.signatures[m]
    _check_frames(signature, segment)
    n = len(segment)
    n_fixed = signature.frames
    if n_fixed is not None and (n > n_fixed or complete and n < n_fixed):
        raise UserError(
            f"a {m} segment has {n} frames, but every {m} of this tokenizer has {n_fixed}"
        )
    if segment.infill_spans and signature.descending:
        raise UserError(
            f"infilling is not possible in {m}: its frames are ordered, so what is missing depends"
            " on where it stands"
        )
    if signature.rows:
        _check_rows(signature, segment, complete)


def _check_rows(signature: Signature, segment: Segment, complete: bool) -> None:
    """Raise UserError unless the codes are rows of one length; complete: nothing is missing."""
    m = segment.modality
    if segment.infill_spans:
        raise UserError(
            f"infilling is not possible in {m} of any size: what its rows lack depends on where"
            " they stand"
        )
    layout = row_layout(segment.values[:, 0], signature.levels[0], m, signature.columns)
    if complete and (not layout.columns or layout.column):
        raise UserError(f"a {m} segment has {layout.column} codes behind its last row mark")
    if complete and not len(segment):
        raise UserError(f"a {m} segment has no row")


def _check_frames(signature: Signature, segment: Segment) -> None:
    """Raise UserError for frames of another kind or size, and for codes that are out of range."""
    m = segment.modality
    codes = segment.codes
    width = len(signature.levels) or signature.latent_size
    if (codes is None) == bool(signature.levels) or segment.values.shape[1] != width:
        raise UserError(
            f"a {m} segment of frame shape {segment.values.shape[1:]} does not fit"
            f" {signature.levels or signature.latent_size}"
        )
    if codes is None or not len(codes):
        return
    if codes.min() < 0 or (codes.max(0) >= signature.sizes).any():
        raise UserError(f"a {m} segment has codes outside its levels: another tokenizer's?")
    if np.isin(codes, signature.banned).any():
        raise UserError(
            f"a {m} segment has codes that its tokenizer promised never to use:"
            f" {signature.banned} are banned"
        )


def _segment_parts(
    vocabulary: Vocabulary, segment: Segment, i: int, predict: bool, closed: bool, n_filled: int
) -> list[_Part]:
    """The positions of segment number i: its visible frames with HOLE marks, then the fills.

    closed: it has its end mark. n_filled: spans to infill whose frames follow; the next, if any,
    gets a FILL mark and no frames.
    """
    m = segment.modality
    k = vocabulary.index[m]
    open_length = vocabulary.signatures[m].frames is None
    begin = np.array([vocabulary.begin(m)])
    end = np.array([vocabulary.end(m)])
    hole = np.array([vocabulary.hole])
    fill = np.array([vocabulary.fill])
    frames = _frame_ids(vocabulary, segment)
    # what surrounds an infilled span is its condition
    scored = predict and not segment.infill_spans
    asked = segment.asked

    parts = [_Part(begin, k, i)]
    for n, (a, b) in enumerate(_visible(segment)):
        if n > 0:
            parts.append(_Part(hole, k, i))
        may_end: bool | np.ndarray = open_length
        signature = vocabulary.signatures[m]
        if signature.rows:
            layout = row_layout(segment.values[:, 0], signature.levels[0], m, signature.columns)
            may_end = layout.may_end
            asked = asked & ~layout.certain
        parts.append(_Part(frames[a:b], k, i, scored & asked[a:b], may_end))
    if closed or segment.infill_spans:
        asks_end = scored and _asks_end(segment.asked)
        parts.append(_Part(end, k, i, asks_end and open_length, open_length))

    for n, (a, b) in enumerate(segment.infill_spans[:n_filled]):
        later = segment.infill_spans[n + 1 :]
        may_end = open_length or bool(later)
        # of a fixed length: once no frame is left for later spans, the end mark is certain
        end_is_certain = not open_length and all(x == y for x, y in later)
        parts.append(_Part(fill, k, i))
        parts.append(_Part(frames[a:b], k, i, predict & asked[a:b], may_end))
        asks_end = predict and _asks_end(asked[a:b])
        parts.append(_Part(end, k, i, asks_end and may_end and not end_is_certain, may_end))
    if n_filled < len(segment.infill_spans):
        parts.append(_Part(fill, k, i))
    return parts


def _asks_end(asked: np.ndarray) -> bool:
    """Whether p of the end mark behind some frames is asked for: it goes with the last of them."""
    return not len(asked) or bool(asked[-1])


def _frame_ids(vocabulary: Vocabulary, segment: Segment) -> np.ndarray:
    """The ids (T,) of a segment's frames."""
    span = vocabulary.span(segment.modality)
    signature = vocabulary.signatures[segment.modality]
    if segment.codes is not None and signature.one_channel:
        ids = segment.codes[:, 0].astype(np.int64) + span[0]
        if signature.rows:
            ids[segment.codes[:, 0] == len(span)] = vocabulary.end(segment.modality)
        return ids
    return np.full(len(segment), span[0])


def _visible(segment: Segment) -> list[tuple[int, int]]:
    """Spans of frames outside those to infill: one more than these."""
    starts = [0] + [b for _, b in segment.infill_spans]
    stops = [a for a, _ in segment.infill_spans] + [len(segment)]
    return list(zip(starts, stops, strict=True))


def _ceiling(signature: Signature, pieces: list[np.ndarray]) -> np.ndarray:
    """The highest legal frames (N, C) at the frames of these segments.

    Raises UserError where a frame lies above its own.
    """
    frames = np.concatenate(pieces)
    ceiling = np.concatenate([signature.ceilings(piece)[:-1] for piece in pieces]).astype(np.int64)
    # the first channel that differs decides which of two frames is higher
    channel = (frames != ceiling).argmax(1)
    place = (np.arange(len(frames)), channel)
    rises = frames[place] > ceiling[place]
    if rises.any():
        raise UserError(
            f"a {signature.modality} segment's channel {channel[np.argmax(rises)]} rises from one"
            " frame to the next; its tokenizer promised the frames in falling lexicographic order"
        )
    return ceiling


# ---- streams to documents


def to_document(vocabulary: Vocabulary, stream: Stream) -> Document:
    """The inverse of `to_stream`, but for the segments' infos, which are not in the stream."""
    n_used = dict.fromkeys(vocabulary.signatures, 0)
    names = list(vocabulary.signatures)
    segments: list[Segment | None] = []
    predict: list[bool] = []
    n_segments = int(stream.segment[-1]) + 1 if len(stream) > 1 else 0
    for i in range(n_segments):
        where = stream.segment == i
        where[0] = False  # the document mark
        k = int(stream.modality[where][0])
        if k < 0:
            segments.append(None)
            predict.append(False)
            continue
        segments.append(_read_segment(vocabulary, names[k], stream, where, n_used))
        predict.append(bool(stream.predict[where].any()))
    return Document(tuple(segments), tuple(predict), open_end=False)


def _read_segment(
    vocabulary: Vocabulary, m: str, stream: Stream, where: np.ndarray, n_used: dict[str, int]
) -> Segment:
    """The segment at the positions `where` (L,); n_used counts the values taken so far."""
    ids = stream.ids[where]
    span = vocabulary.span(m)
    signature = vocabulary.signatures[m]
    if signature.rows:
        return _read_rows(vocabulary, m, ids, stream.predict[where])
    is_frame = (ids >= span[0]) & (ids <= span[-1])
    if signature.one_channel:
        frames = (ids[is_frame] - span[0])[:, None]
    else:
        n = int(is_frame.sum())
        frames = stream.values[m][n_used[m] : n_used[m] + n]
        n_used[m] += n
    closed = bool((ids == vocabulary.end(m)).any())
    # `part` counts the HOLE and FILL marks before each frame: 0, then 1 after the first HOLE ...
    part = np.cumsum((ids == vocabulary.hole) | (ids == vocabulary.fill))[is_frame]
    n_marks = int((ids == vocabulary.hole).sum())
    order = [np.flatnonzero(part == 0)]
    start = len(order[0])
    spans = []
    for j in range(n_marks):
        fill = np.flatnonzero(part == n_marks + 1 + j)
        after = np.flatnonzero(part == j + 1)
        spans.append((start, start + len(fill)))
        order += [fill, after]
        start += len(fill) + len(after)
    in_order = np.concatenate(order)
    # what surrounds an infilled span is never predicted, so of it nothing is known
    asked = stream.predict[where][is_frame] | ((part <= n_marks) & (n_marks > 0))
    some = bool(stream.predict[where].any()) and not asked.all()
    more: dict[str, Any] = {
        "truncated": not closed,
        "infill_spans": tuple(spans),
        "predict": asked[in_order] if some else None,
    }
    if signature.levels:
        return Segment(m, codes=frames[in_order], **more)
    return Segment(m, latents=frames[in_order], **more)


def _read_rows(vocabulary: Vocabulary, m: str, ids: np.ndarray, predict: np.ndarray) -> Segment:
    """The segment of codes in rows: ids (L,) from its begin mark on."""
    end = vocabulary.end(m)
    closed = len(ids) > 2 and bool((ids[-2:] == end).all())
    frames = slice(1, len(ids) - closed)
    mark = len(vocabulary.span(m))
    codes = np.where(ids[frames] == end, mark, ids[frames] - vocabulary.span(m)[0])
    columns = vocabulary.signatures[m].columns
    asked = predict[frames] | row_layout(codes, mark, m, columns).certain
    some = bool(predict.any()) and not asked.all()
    return Segment(m, codes=codes[:, None], truncated=not closed, predict=asked if some else None)
