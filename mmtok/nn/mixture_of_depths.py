"""Mixture-of-Depths: blocks that only some positions of a sequence pass through.

Raposo et al. 2024, arXiv 2404.02258. Of the positions of a row the k with the highest router
weights r = sigmoid(w . x) are kept (eq. 1, k the capacity): x' = x + r f(x), where f is what the
block adds; all others stay x' = x. Kept positions attend to kept ones alone.

Which are the k highest depends on the future, so this is for training only. A predictor, learned
beside it with a stopped gradient (section 3.5), says from a position's own state whether it is one
of them. Scores, samples and evaluations go by the predictor: then p is causal and normalised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Documents:
    """What a routed block makes its own mask from.

    Attributes:
        document: (B, L), the number of each position's document, below 0 at padding.
        both_ways: (B, L) bool, whose documents attend to their future too; None: none.
    """

    document: Tensor
    both_ways: Tensor | None = None


class Router(nn.Module):
    """The weight of each position, and whether it is predicted to be kept.

    Attributes:
        batch_share: of the positions that an optimiser step reads, the share in the rows at hand.
            The predictor's loss is multiplied by it, so that a step is the same however its rows
            are split over micro-batches and processes.
    """

    def __init__(self, width: int):
        super().__init__()
        self.batch_share = 1.0
        self.weigh = nn.Linear(width, 1, bias=False)
        hidden = max(8, width // 8)
        self.predictor = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def weights(self, x: Tensor) -> Tensor:
        """States (..., M) -> r (...) in (0, 1)."""
        return torch.sigmoid(self.weigh(x)[..., 0])

    def predicted(self, x: Tensor) -> Tensor:
        """States (..., M) -> logits (...) that a position is kept; no gradient goes to x."""
        return self.predictor(x.detach())[..., 0]


def by_weight(
    x: Tensor, is_real: Tensor, router: Router, capacity: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The places (B, k) of the k highest weights of each row, which of them count, and x.

    x (B, L, M) has the predictor's loss in its graph, the mean binary cross entropy times the
    router's `batch_share`. is_real (B, L): no padding.
    """
    k = max(1, math.ceil(capacity * x.shape[1]))
    weights = router.weights(x.detach()).masked_fill(~is_real, -1)
    index = weights.topk(k, 1).indices.sort(1).values
    logits = router.predicted(x)
    is_top = torch.zeros_like(is_real).scatter(1, index, True)
    nll = F.binary_cross_entropy_with_logits(logits, is_top.to(logits), reduction="none")
    loss = (nll * is_real).sum() / is_real.sum().clamp(min=1)
    attached = cast(Tensor, _Attached.apply(x, router.batch_share * loss))
    return index, is_real.gather(1, index), attached


class _Attached(torch.autograd.Function):
    """x, and in the backward pass the gradient of a loss that nothing else adds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.ones_like(ctx.saved_tensors[0])


def kept_places(is_kept: Tensor) -> tuple[Tensor, Tensor]:
    """(B, k) places of the kept positions (B, L) in order, filled up, and (B, k) which count.

    k is the most that a row keeps. No place comes twice in a row.
    """
    counts = is_kept.sum(1)
    k = int(counts.max())
    index = (~is_kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :k]
    return index, torch.arange(k, device=is_kept.device) < counts[:, None]


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows x (B, L, M) at places (B, k) -> (B, k, M)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def take_rope(rope: tuple[Tensor, Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines and sines (B, 1, L, head_size) of places (B, k)."""
    cos, sin = (take(x[:, 0], index)[:, None] for x in rope)
    return cos, sin


def kept_mask(documents: Documents, index: Tensor, is_kept: Tensor) -> Tensor:
    """(B, 1, k, k): kept positions see those before them in their document; others themselves."""
    document = documents.document.gather(1, index).masked_fill(~is_kept, -2)
    same = document[:, :, None] == document[:, None, :]
    mask = same.tril()
    if documents.both_ways is not None:
        mask = same & (mask | documents.both_ways.gather(1, index)[:, :, None])
    return mask[:, None]
