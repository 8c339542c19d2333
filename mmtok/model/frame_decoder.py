"""What draws the frames of one modality: weights beside the trunk's, laid out for it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.heads.base import Head
from mmtok.model.frame_embedding import FoldedFrames, FrameEmbedding
from mmtok.model.lm import LM
from mmtok.nn.cross_entropy import upcast
from mmtok.nn.inference_linear import (
    WeightPrecision,
    prepare_linear,
    tensors_of,
    with_prepared_linears,
)
from mmtok.nn.precision import Precision, resolve_precision


class FrameDecoder:
    """The parts of an LM that draw one modality: logits of ids, the head, embeddings of new frames.

    Its weights are laid out once for inference: make it anew after the LM's weights have changed.
    """

    def __init__(self, lm: LM, modality: str, precision: WeightPrecision, n_rows: int):
        signature = lm.vocabulary.signatures[modality]
        self.ids = prepare_linear(lm.id_rows(modality), None, precision, n_rows)
        self.banned: Tensor | None = None
        if signature.banned:
            self.banned = torch.tensor(signature.banned, dtype=torch.long, device=lm.device)
        self.first_id = lm.vocabulary.span(modality)[0]
        self.row_mark = 0  # among the ids, where codes stand in rows
        if signature.rows:
            self.row_mark = lm.vocabulary.end(modality)
        self.n_codes = len(lm.vocabulary.span(modality))
        self.table = lm.model.embed_tokens.weight
        self.latent_in: nn.Linear | None = None
        self.frame_in: FoldedFrames | None = None
        self.head = lm.head(modality)
        if signature.latent_size:
            self.latent_in = cast(nn.Linear, lm.latent_in[modality])
        elif not signature.one_channel:
            self.head = cast(Head, with_prepared_linears(cast(Head, self.head), precision, n_rows))
            self.frame_in = cast(FrameEmbedding, lm.frame_in[modality]).folded()

    def id_logits(self, h: Tensor) -> Tensor:
        """(N, n + 1): as `LM.id_logits` of this modality."""
        logits = upcast(self.ids(h))
        if self.banned is None:
            return logits
        return logits.index_fill_(1, self.banned, float("-inf"))

    def tensors(self) -> list[Tensor]:
        """All weights that it reads."""
        found = [self.table, *tensors_of(self.ids)]
        if self.head is not None:
            found += tensors_of(self.head)
        if self.frame_in is not None:
            found += [self.frame_in.added, *tensors_of(self.frame_in.inner)]
        return found

    def embed(self, values: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (N, M) of new frames, and the running totals with them.

        values (N, C) or (N, D): the new frames; totals: those of the frames before.
        """
        if self.latent_in is not None:
            return self.latent_in(values) + self.table[self.first_id], totals
        if self.frame_in is None:
            ids = values[:, 0] + self.first_id
            if self.row_mark:
                ids = ids.masked_fill(values[:, 0] == self.n_codes, self.row_mark)
            return F.embedding(ids, self.table), totals
        x, totals = self.frame_in.step(values, totals)
        return x + self.table[self.first_id], totals


def weight_precision(asked: Precision | WeightPrecision, weight: Tensor) -> WeightPrecision:
    """The precision of the weights while drawing, for `Sampling.precision`.

    Under "auto", weights that are not float32 stay as they are.
    """
    if asked == "int8":
        return "int8"
    if asked == "auto" and weight.dtype != torch.float32:
        return "float32"
    return resolve_precision(asked, weight.device)
