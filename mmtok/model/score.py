"""Exact log-probabilities of documents, segment by segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mmtok.batch import pack, plan_rows
from mmtok.model.lm import LM
from mmtok.segment import Document


@dataclass(frozen=True)
class Score:
    """-log p of a document's segments, each given those before it.

    nats    per segment, frames and end mark together; None for a segment that was only a condition
    frames  per segment, how many
    kind    "exact", "bound" (an upper bound on the true nats) or "estimate"
    """

    nats: tuple[float | None, ...]
    frames: tuple[int, ...]
    kind: str = "exact"

    @property
    def total(self) -> float:
        """Nats of the whole document."""
        return sum(n for n in self.nats if n is not None)


@torch.no_grad()
def score(lm: LM, documents: Sequence[Document], positions_per_batch: int = 16_384) -> list[Score]:
    """Score documents in packed rows. Begin marks are given, a fixed-length segment's end is certain.

    Raises BadInput when an input-only modality is among the predicted ones.
    """
    training, lengths = lm.training, []
    lm.eval()
    streams = [lm.vocabulary.stream(d) for d in documents]
    lengths = [len(s) for s in streams]
    row_length = max(lengths, default=1)
    rows = plan_rows(lengths, row_length)
    per_batch = max(1, positions_per_batch // row_length)
    nats = [np.zeros(len(d.segments)) for d in documents]
    for start in range(0, len(rows), per_batch):
        chunk = rows[start : start + per_batch]
        total = lm(pack(lm.vocabulary, [[streams[i] for i in row] for row in chunk])).total.double().numpy()
        for r, row in enumerate(chunk):
            at = 0
            for i in row:
                np.add.at(nats[i], streams[i].segment, total[r, at : at + lengths[i]])
                at += lengths[i]
    lm.train(training)
    return [
        Score(tuple(float(x) if p else None for x, p in zip(n, d.predict)), tuple(0 if s is None else len(s) for s in d.segments))
        for n, d in zip(nats, documents)
    ]
