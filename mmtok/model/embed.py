"""One vector of fixed size for a signal of any modality: pooled states of the decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from mmtok.core.batch import pack, plan_rows
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment
from mmtok.errors import UserError
from mmtok.model.lm import LM, evaluating


def embed(
    lm: LM,
    segments: Sequence[Segment],
    positions_per_batch: int = 16_384,
    on_embedded: Callable[[int], None] = lambda n: None,
) -> np.ndarray:
    """(n, D) float32: the unit vector of each segment, whatever the packing.

    Raises UserError for a decoder without an embedding.
    """
    if lm.embedding is None:
        raise UserError(
            "this run makes no vectors: its recipe has neither contrasts nor model.embedding (see"
            " recipes/embed.py)"
        )
    documents = [Document((segment,), (False,)) for segment in segments]
    streams = [to_stream(lm.vocabulary, document) for document in documents]
    lengths = [len(stream) for stream in streams]
    seq_len = max(lengths, default=1)
    rows = plan_rows(lengths, seq_len)
    per_batch = max(1, positions_per_batch // seq_len)
    found = np.zeros((len(segments), lm.embedding.pool.out.out_features), np.float32)
    with evaluating(lm):
        for start in range(0, len(rows), per_batch):
            chunk = rows[start : start + per_batch]
            batch = pack(lm.vocabulary, [[streams[i] for i in row] for row in chunk])
            batch = replace(batch, group=batch.document, field=torch.zeros_like(batch.document))
            batch = batch.to(lm.device)
            vectors, _ = lm.embedding.vectors(lm.hidden(batch), batch)
            found[[i for row in chunk for i in row]] = vectors.cpu().numpy()
            on_embedded(sum(map(len, chunk)))
    return found
