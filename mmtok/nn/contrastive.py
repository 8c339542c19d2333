"""Attention pooling of documents to vectors of one size, and contrastive losses between vectors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ContrastiveKind = Literal["siglip", "clip"]


class AttentionPool(nn.Module):
    """Hidden states of a document of any length to one unit vector.

    Pooling by attention of learned queries (Lee et al. 2019, Set Transformer, section 3.2):
    v = W_o concat_h sum_l a_lh W_h x_l, where a_lh = softmax_l(w_h . x_l), divided by its norm.
    Keys times one fixed query are one linear map, w_h.

    width: M of the states. size: D of the vectors. n_heads: queries.
    """

    def __init__(self, width: int, size: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.score = nn.Linear(width, n_heads)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, size)

    def forward(self, x: Tensor, document: Tensor, n: int) -> Tensor:
        """States x (P, M) of n documents, document (P,) in [0, n) of each -> (n, D), of norm 1."""
        weights = segment_softmax(self.score(x), document, n)  # (P, H)
        values = self.value(x).unflatten(-1, (self.n_heads, -1))
        weighted = (weights[..., None] * values.to(weights.dtype)).flatten(1)
        pooled = weighted.new_zeros(n, weighted.shape[1]).index_add(0, document, weighted)
        return F.normalize(self.out(pooled.to(x.dtype)).float(), dim=-1)


def segment_softmax(x: Tensor, segment: Tensor, n: int) -> Tensor:
    """Softmax of x (P, H) over the entries of each of n segments, in float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    index = segment[:, None].expand_as(x)
    low = x.new_full((n, x.shape[1]), float("-inf"))
    highest = low.scatter_reduce(0, index, x.detach(), "amax")
    e = (x - highest[segment]).exp()
    return e / e.new_zeros(n, x.shape[1]).index_add(0, segment, e)[segment]


class ContrastiveLoss(nn.Module):
    """Vectors of one group are to be alike, those of others unlike.

    Only vectors of different fields are compared, with the logits l_ij = t x_i . x_j + b.

    - siglip (Zhai et al. 2023, section 3.2): -sum_j log sigmoid(z_ij l_ij), where z is 1 in one
      group and -1 otherwise.
    - clip (Radford et al. 2021, figure 3): -log softmax_j(l_ij) over each other field, averaged
      over the j of i's group, of which there may be several (Khosla et al. 2020, eq. 2). b drops
      out.

    t and b are learned, from the papers' first values.
    """

    def __init__(self, kind: ContrastiveKind):
        super().__init__()
        self.kind = kind
        first_scale = 10.0
        if kind == "clip":
            first_scale = 1 / 0.07
        self.log_scale = nn.Parameter(torch.tensor(first_scale).log())
        if kind == "siglip":
            self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, x: Tensor, group: Tensor, field: Tensor) -> Tensor:
        """Unit vectors x (n, D), group (n,), field (n,) -> the loss (n,) of each."""
        logits = (x @ x.T) * self.log_scale.clamp(max=MAX_LOG_SCALE).exp()
        compared = field[:, None] != field
        alike = (group[:, None] == group) & compared
        if self.kind == "siglip":
            z = 2.0 * alike - 1
            return (F.softplus(-z * (logits + self.bias)) * compared).sum(1)
        total = logits.new_zeros(len(x))
        for f in field.unique():
            mine = (field == f) & compared
            has_partner = (alike & mine).any(1)
            log_p = logits.masked_fill(~mine, float("-inf")).log_softmax(1)
            chosen = log_p.masked_fill(~(alike & mine), 0).sum(1) / (alike & mine).sum(1).clamp(1)
            total = total - chosen.masked_fill(~has_partner, 0)
        return total


MAX_LOG_SCALE = 4.6052  # log 100, CLIP's bound of the scale (Radford et al. 2021, section 2.4)
