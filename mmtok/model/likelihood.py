"""Log-probabilities of documents, segment by segment: exact, bounds or estimates, by the heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mmtok.core.batch import pack, plan_rows
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment
from mmtok.errors import UserError
from mmtok.model.lm import LM, evaluating, trunk_dropout

KINDS = ("exact", "bound", "estimate")  # the least certain last


@dataclass(frozen=True)
class LogLikelihood:
    """-log p of a document's segments, each given those before it.

    Attributes:
        nats: per segment, frames and end mark together; None for a segment that was only a
            condition.
        frames: per segment, how many frames its nats are the sum over: of a segment with spans to
            infill those in the spans, of one with `Segment.predict` those that it asks for.
        kind: "exact", "bound" (an upper bound on -log p, in expectation where it is sampled) or
            "estimate": the least certain among the predicted segments. It is of the codes or
            latents as they are; whether a signal has other codes too, the model does not know.
    """

    nats: tuple[float | None, ...]
    frames: tuple[int, ...]
    kind: str = "exact"

    @property
    def total(self) -> float:
        """Nats of the whole document."""
        return sum(n for n in self.nats if n is not None)


def score(
    lm: LM,
    documents: Sequence[Document],
    positions_per_batch: int = 16_384,
    on_scored: Callable[[int], None] = lambda n: None,
    seed: int = 0,
    dropout_seed: int | None = None,
) -> list[LogLikelihood]:
    """Score documents in packed rows.

    Begin marks are given, a fixed-length segment's end is certain. Random draws of bounds and
    estimates depend on the seed and on the batch's place: the same documents in the same order have
    the same scores, and batches draw independently, so that errors average out.

    on_scored: called with the number of documents scored since the last call.
    dropout_seed: of the trunk's dropout masks; None: without dropout.

    Raises UserError for a document without segments, for a predicted modality that is input-only,
    and for a score of NaN or minus infinity, naming the modality. Infinity is allowed: the model
    rules the document out.
    """
    scored = score_part(lm, documents, 0, 1, positions_per_batch, on_scored, seed, dropout_seed)
    return [scored[i] for i in range(len(documents))]


def score_part(
    lm: LM,
    documents: Sequence[Document],
    k: int,
    n: int,
    positions_per_batch: int = 16_384,
    on_scored: Callable[[int], None] = lambda n: None,
    seed: int = 0,
    dropout_seed: int | None = None,
) -> dict[int, LogLikelihood]:
    """Part k of n of what `score` gives, bit for bit, by the documents' numbers.

    It is batch k of packed rows, then batch k + n, and so on.
    """
    for i, document in enumerate(documents):
        if not document.segments:
            raise UserError(
                f"document {i} of {len(documents)}, counted from 0, has no segments: there is"
                " nothing to score; leave it out"
            )
    streams = [to_stream(lm.vocabulary, d) for d in documents]
    lengths = [len(s) for s in streams]
    seq_len = max(lengths, default=1)
    rows = plan_rows(lengths, seq_len)
    per_batch = max(1, positions_per_batch // seq_len)
    nats: dict[int, np.ndarray] = {}
    for start in range(k * per_batch, len(rows), n * per_batch):
        chunk = rows[start : start + per_batch]
        with evaluating(lm), trunk_dropout(lm, dropout_seed, start):
            batch = pack(lm.vocabulary, [[streams[i] for i in row] for row in chunk]).to(lm.device)
            total = lm(batch, seed=seed + start).total.cpu().double().numpy()
        for r, row in enumerate(chunk):
            at = 0
            for i in row:
                nats[i] = np.zeros(len(documents[i].segments))
                np.add.at(nats[i], streams[i].segment, total[r, at : at + lengths[i]])
                at += lengths[i]
                _check_nats(documents[i], nats[i])
        on_scored(sum(map(len, chunk)))
    return {
        i: LogLikelihood(
            tuple(float(x) if p else None for x, p in zip(mine, documents[i].predict, strict=True)),
            tuple(map(_n_frames, documents[i].segments)),
            _kind(lm, documents[i]),
        )
        for i, mine in nats.items()
    }


def mixture(members: Sequence[Sequence[LogLikelihood]]) -> list[LogLikelihood]:
    """Likelihoods of documents under K members -> those of their mixture, p = mean_k p_k.

    Of several segments, p(s_1 .. s_j) = mean_k p_k(s_1 .. s_j). A mean of lower bounds of p is one.
    """
    return [_mixed(scored) for scored in zip(*members, strict=True)]


def _mixed(members: Sequence[LogLikelihood]) -> LogLikelihood:
    nats = np.array([[x or 0.0 for x in each.nats] for each in members])  # (K, segments)
    summed = np.cumsum(nats, 1)
    joint = np.log(len(members)) - np.logaddexp.reduce(-summed, 0)
    steps = np.diff(joint, prepend=0.0)
    asked = [x is not None for x in members[0].nats]
    kind = max((each.kind for each in members), key=KINDS.index)
    mixed = tuple(float(x) if yes else None for x, yes in zip(steps, asked, strict=True))
    return LogLikelihood(mixed, members[0].frames, kind)


def last_nats(
    lm: LM, documents: Sequence[Document], positions_per_batch: int = 16_384
) -> list[np.ndarray]:
    """-log p of each frame of each document's last segment, and of its end mark: (T + 1,).

    For segments without spans to infill; the end mark of a truncated one is missing.
    """
    streams = [to_stream(lm.vocabulary, d) for d in documents]
    lengths = [len(s) for s in streams]
    rows = plan_rows(lengths, max(lengths, default=1))
    per_batch = max(1, positions_per_batch // max(lengths, default=1))
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(rows), per_batch):
        chunk = rows[start : start + per_batch]
        with evaluating(lm):
            batch = pack(lm.vocabulary, [[streams[i] for i in row] for row in chunk]).to(lm.device)
            total = lm(batch).total.cpu().double().numpy()
        for r, row in enumerate(chunk):
            at = 0
            for i in row:
                stop = at + lengths[i]
                # the last segment ends the stream; its begin mark is given
                n = len(documents[i].target) + (not documents[i].target.truncated)
                found[i] = total[r, stop - n : stop]
                at = stop
    return [found[i] for i in range(len(documents))]


def _check_nats(document: Document, nats: np.ndarray) -> None:
    """Raise UserError where the nats of a predicted segment are NaN or minus infinity."""
    for segment, predicted, x in zip(document.segments, document.predict, nats, strict=True):
        if segment is not None and predicted and not x > -np.inf:
            raise UserError(
                f"{segment.modality} cannot be scored: its nats are {x}, no number, as the weights"
                " are broken or overflow; train again, with a lower learning rate"
            )


def _kind(lm: LM, document: Document) -> str:
    """The least certain kind among the predicted segments."""
    kinds = [
        lm.kind(s.modality)
        for s, predicted in zip(document.segments, document.predict, strict=True)
        if s is not None and predicted
    ]
    return max(kinds, key=KINDS.index, default="exact")


def _n_frames(segment: Segment | None) -> int:
    if segment is None:
        return 0
    if segment.infill_spans:
        return sum(int(segment.asked[a:b].sum()) for a, b in segment.infill_spans)
    return int(segment.asked.sum())
