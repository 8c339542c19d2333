"""The decoder as sampling uses it: its weights laid out once for drawing one modality frame by
frame.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtok.heads.categorical import upcast
from mmtok.model.lm import LM
from mmtok.nn.inference_linear import (
    WeightPrecision,
    prepare_linear,
    with_prepared_linears,
)


class FrameDecoder:
    """What of an LM gives the next id and frame of one modality, and reads a frame just drawn; to
    be made anew once the LM learned.
    """

    def __init__(self, lm: LM, modality: str, precision: WeightPrecision, n_rows: int):
        signature, span, end = (
            lm.vocabulary.signatures[modality],
            lm.vocabulary.span(modality),
            lm.vocabulary.end(modality),
        )
        weight = lm.id_weight
        self.ids = prepare_linear(
            torch.cat([weight[span[0] : span[-1] + 1], weight[end : end + 1]]),
            None,
            precision,
            n_rows,
        )
        self.banned = (
            torch.tensor(signature.banned, dtype=torch.long, device=lm.device)
            if signature.banned
            else None
        )
        self.first_id, self.table = span[0], lm.model.embed_tokens.weight
        self.head = self.frame_in = None
        self.latents = bool(signature.latent_size)
        if self.latents:
            self.head, self.frame_in = lm.heads[modality], lm.latent_in[modality]
        elif not signature.one_channel:
            self.head = with_prepared_linears(lm.heads[modality], precision, n_rows)
            self.frame_in = lm.frame_in[modality].folded()

    def id_logits(self, h: Tensor) -> Tensor:
        """(N, n + 1): as `LM.id_logits` of this modality."""
        logits = upcast(self.ids(h))
        return logits if self.banned is None else logits.index_fill_(1, self.banned, float("-inf"))

    def embed(self, values: Tensor, totals: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Frames just drawn (n, C) or (n, D) and the totals before them -> as the trunk reads them
        (n, M), the totals with them.
        """
        if self.frame_in is None:
            return F.embedding(values[:, 0] + self.first_id, self.table), totals
        if self.latents:
            return self.frame_in(values) + self.table[self.first_id], totals
        x, totals = self.frame_in.step(values, totals)
        return x + self.table[self.first_id], totals
