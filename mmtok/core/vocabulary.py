"""The grammar of valid streams over the one id space, and documents laid out as such streams.

A document is the stream

    DOCUMENT  begin a, frames, end a  begin b, frames, end b  ...

with NULL in the place of a condition left out, no end mark after a truncated segment, and holes
given last:

    begin m, frames, HOLE, frames, end m, FILL, frames, end m
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from mmtok.core.layout import Layout
from mmtok.core.segment import Document, Segment
from mmtok.errors import UserError


@dataclass(frozen=True)
class State:
    """Where a stream stands; the states of the grammar.

    modality  of the segment being read, or None between segments
    left      frames still to place, None when the segment runs until its end mark
    holes     hole marks that are still to be filled
    filling   the frames being read fill a hole
    due       "document" at the start of a stream, "fill" when a fill mark must follow, else ""
    """

    modality: str | None = None
    left: int | None = None
    holes: int = 0
    filling: bool = False
    due: str = ""


START = State(due="document")


@dataclass(frozen=True, eq=False)
class Stream:
    """One document as arrays over its L positions; what `Batch` packs.

    ids, segment, modality  (L,) integers; modality is the signature's index, -1 for DOCUMENT and
                            NULL
    predict   (L,) bool: p of this position is part of the score
    may_end   (L,) bool: the end mark is among the ids legal here
    values    per many-channel or latent modality (N_m, C) or (N_m, D), in stream order
    ceiling   per modality whose frames are a set (N_m, C): the highest legal frame in lexicographic
              order
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


class Vocabulary(Layout):
    """A layout of ids with its grammar: knows which ids may come next, and lays documents out as
    streams that follow it.

    signatures: in the order that fixes the layout.
    """

    # ---- the grammar

    def legal(self, state: State) -> np.ndarray:
        """Ids among which p is shared out in this state: (n,) sorted.

        Holes and what follows a segment are given, not chosen.
        """
        if state.due:
            return np.array([self.document_mark if state.due == "document" else self.fill])
        if state.modality is None:
            return np.array(sorted([self.null, *(self.begin(m) for m in self.signatures)]))
        m = state.modality
        codes = (
            np.delete(np.array(self.span(m)), self.signatures[m].banned)
            if state.left != 0
            else np.array([], int)
        )
        return np.sort(np.append(codes, [self.end(m)] * self._may_end(state)).astype(np.int64))

    def _is_legal(self, state: State, id: int) -> bool:
        """`id in legal(state)`, without listing them."""
        if state.due or state.modality is None:
            return id in self.legal(state)
        m, span = state.modality, self.span(state.modality)
        if id in span:
            return state.left != 0 and id - span[0] not in self.signatures[m].banned
        return id == self.end(m) and self._may_end(state)

    def _may_end(self, state: State) -> bool:
        more_holes = (
            state.holes > 1 if state.filling else state.holes > 0
        )  # a later fill can still take frames
        return more_holes or state.left in (None, 0)

    def advance(self, state: State, id: int) -> State:
        """The state after reading `id`. Raises ValueError when no valid stream continues so."""
        m = state.modality
        if m is not None and not state.due:
            if id == self.hole and not state.filling:
                return replace(state, holes=state.holes + 1)
            if self._is_legal(state, id):
                if id != self.end(m):
                    return replace(state, left=None if state.left is None else state.left - 1)
                holes = state.holes - state.filling
                return State(m, state.left, holes, due="fill") if holes else State()
            if id in (self.null, *map(self.begin, self.signatures)) and not state.holes:
                state = State()  # a truncated segment stops without its end mark
        if not self._is_legal(state, id):
            raise ValueError(f"id {id} cannot follow in state {state}")
        if state.due:
            return State() if state.due == "document" else replace(state, filling=True, due="")
        opened = {self.begin(name): name for name in self.signatures}.get(id)
        return State(opened, self.signatures[opened].frames) if opened else State()

    # ---- documents to streams

    def stream(self, document: Document) -> Stream:
        """Lay a document out as ids and values.

        Raises UserError for a segment that does not fit its signature.
        """
        parts = [_Part(np.array([self.document_mark]), -1, 0)]
        values: dict[str, list] = {}
        for i, (segment, predict) in enumerate(zip(document.segments, document.predict)):
            if segment is None:
                parts.append(_Part(np.array([self.null]), -1, i))
                continue
            is_open = document.open_end and i == len(document.segments) - 1
            self._check_segment(segment, whole=not is_open and not segment.truncated)
            n_filled = document.n_filled if is_open else len(segment.holes)
            parts += self._segment_parts(
                segment, i, predict, not segment.truncated and not is_open, n_filled
            )
            if not self.signatures[segment.modality].one_channel:
                pieces = [
                    segment.values[a:b]
                    for a, b in _visible(segment) + list(segment.holes[:n_filled])
                ]
                values.setdefault(segment.modality, []).extend(pieces)
        sizes = [len(p.ids) for p in parts]
        spread = lambda name, dtype: np.repeat(
            np.array([getattr(p, name) for p in parts], dtype), sizes
        )
        return Stream(
            ids=np.concatenate([p.ids for p in parts]).astype(np.int64),
            segment=spread("segment", np.int64),
            modality=spread("modality", np.int64),
            predict=spread("predict", bool),
            may_end=spread("may_end", bool),
            values={m: np.concatenate(pieces) for m, pieces in values.items()},
            ceiling={
                m: self._ceiling(m, pieces)
                for m, pieces in values.items()
                if self.signatures[m].descending
            },
        )

    def _check_segment(self, segment: Segment, whole: bool) -> None:
        m = segment.modality
        if m not in self.signatures:
            raise UserError(
                f"modality {m!r} is not in this vocabulary, which has {', '.join(self.signatures)}"
            )
        signature = self.signatures[m]
        width = len(signature.levels) or signature.latent_size
        if (segment.codes is None) == bool(signature.levels) or segment.values.shape[1] != width:
            raise UserError(
                f"a {m} segment of frame shape {segment.values.shape[1:]} does not fit"
                f" {signature.levels or signature.latent_size}"
            )
        if signature.levels and len(segment):
            if segment.codes.min() < 0 or (segment.codes.max(0) >= signature.levels).any():
                raise UserError(f"a {m} segment has codes outside its levels: another tokenizer's?")
            if np.isin(segment.codes, signature.banned).any():
                raise UserError(
                    f"a {m} segment has codes that its tokenizer promised never to use:"
                    f" {signature.banned} are banned"
                )
        if signature.frames is not None and (
            len(segment) > signature.frames or whole and len(segment) < signature.frames
        ):
            raise UserError(
                f"a {m} segment has {len(segment)} frames, but every {m} of this tokenizer has"
                f" {signature.frames}"
            )
        if segment.holes and signature.descending:
            raise UserError(
                f"holes are not possible in {m}: its frames are ordered, so a hole's contents"
                " depend on where it stands"
            )

    def _segment_parts(
        self, segment: Segment, i: int, predict: bool, closed: bool, n_filled: int
    ) -> list[_Part]:
        """begin, visible frames with hole marks, end, then one fill per hole given; a hole not
        given leaves its fill mark open.
        """
        m, k = segment.modality, self.index[segment.modality]
        open_length = self.signatures[m].frames is None
        begin, end, hole, fill = (
            np.array([x]) for x in (self.begin(m), self.end(m), self.hole, self.fill)
        )
        frames = self._frame_ids(segment)
        chosen = predict and not segment.holes  # what surrounds a hole is its condition
        parts = [_Part(begin, k, i)]
        for n, (a, b) in enumerate(_visible(segment)):
            parts += [_Part(hole, k, i)] * (n > 0) + [_Part(frames[a:b], k, i, chosen, open_length)]
        if closed or segment.holes:
            parts.append(_Part(end, k, i, chosen and open_length, open_length))
        for n, (a, b) in enumerate(segment.holes[:n_filled]):
            may_end = open_length or n < len(segment.holes) - 1
            used_up = not open_length and all(
                x == y for x, y in segment.holes[n + 1 :]
            )  # no frame left: the end is certain
            parts += [_Part(fill, k, i), _Part(frames[a:b], k, i, predict, may_end)]
            parts.append(_Part(end, k, i, predict and may_end and not used_up, may_end))
        return parts + [_Part(fill, k, i)] * (n_filled < len(segment.holes))

    def _frame_ids(self, segment: Segment) -> np.ndarray:
        span = self.span(segment.modality)
        if self.signatures[segment.modality].one_channel:
            return segment.codes[:, 0].astype(np.int64) + span[0]
        return np.full(len(segment), span[0])

    def _ceiling(self, modality: str, pieces: list[np.ndarray]) -> np.ndarray:
        """(N, C) highest legal frames of segments; raises UserError where a frame lies above its
        own.
        """
        ceiling = np.concatenate(
            [self.signatures[modality].ceilings(piece)[:-1] for piece in pieces]
        ).astype(np.int64)
        frames = np.concatenate(pieces)
        place = (
            np.arange(len(frames)),
            (frames != ceiling).argmax(1),
        )  # the first channel that differs decides
        if (frames[place] > ceiling[place]).any():
            raise UserError(
                f"a {modality} segment's channel"
                f" {place[1][np.argmax(frames[place] > ceiling[place])]} rises from one frame to"
                " the next; its tokenizer promised the frames in falling lexicographic order"
            )
        return ceiling

    def document(self, stream: Stream) -> Document:
        """The inverse of `stream`: segments, predict flags and holes back from ids and values
        (infos are not in the stream).
        """
        used: dict[str, int] = {m: 0 for m in self.signatures}
        segments: list[Segment | None] = []
        predict: list[bool] = []
        for i in range(int(stream.segment[-1]) + 1 if len(stream) > 1 else 0):
            where = stream.segment == i
            where[0] = False  # the document mark
            k = int(stream.modality[where][0])
            if k < 0:
                segments.append(None)
                predict.append(False)
                continue
            m = list(self.signatures)[k]
            segments.append(self._read_segment(m, stream.ids[where], stream.values.get(m), used))
            predict.append(bool(stream.predict[where].any()))
        return Document(tuple(segments), tuple(predict), open_end=False)

    def _read_segment(
        self, m: str, ids: np.ndarray, values: np.ndarray | None, used: dict[str, int]
    ) -> Segment:
        span, signature = self.span(m), self.signatures[m]
        is_frame = (ids >= span[0]) & (ids <= span[-1])
        n = int(is_frame.sum())
        if signature.one_channel:
            frames = (ids[is_frame] - span[0])[:, None]
        else:
            frames = values[used[m] : used[m] + n]
            used[m] += n
        closed = bool((ids == self.end(m)).any())
        # visible frames come before the first end mark; each fill follows one
        run = np.cumsum((ids == self.hole) | (ids == self.fill))[is_frame]
        n_holes = int((ids == self.hole).sum())
        holes, pieces, start = [], [frames[run == 0]], len(frames[run == 0])
        for j in range(n_holes):
            fill, after = frames[run == n_holes + 1 + j], frames[run == j + 1]
            holes.append((start, start + len(fill)))
            pieces += [fill, after]
            start += len(fill) + len(after)
        whole = np.concatenate(pieces)
        kind = {"codes": whole} if signature.levels else {"latents": whole}
        return Segment(m, **kind, truncated=not closed, holes=tuple(holes))


@dataclass(frozen=True)
class _Part:
    """A run of positions that share everything but their id."""

    ids: np.ndarray
    modality: int
    segment: int
    predict: bool = False
    may_end: bool = False


def _visible(segment: Segment) -> list[tuple[int, int]]:
    """Spans of frames outside the holes: one more than there are holes."""
    starts = [0] + [b for _, b in segment.holes]
    stops = [a for a, _ in segment.holes] + [len(segment)]
    return list(zip(starts, stops))
