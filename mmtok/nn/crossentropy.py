"""-log p of classes under a linear layer and a softmax, without ever holding the logits of all rows at once.

N rows, n classes, M width. Of the logits only each row's log-sum-exp is kept; the backward pass computes them again, chunk by chunk
(as Wijmans et al., arXiv 2411.09009, do within a kernel). It costs one more matrix product, and saves holding N n numbers several times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

WHOLE = 2**25  # logits up to which holding them costs less than computing them again: 128 MiB in float32
CHUNK = 2**24  # logits held at once beyond that


def chunked_nats(h: Tensor, weight: Tensor, target: Tensor, last_legal: Tensor, banned: Sequence[int] = (),
                 chunk: int | None = None) -> Tensor:
    """(N,) -log p of `target` (N,), the logits being h (N, M) times weight (n, M), transposed; in float32 at least, as its sums are.

    last_legal: (N,) bool, whether class n - 1 can occur in a row; banned: classes that can in none.
    chunk: logits held at once, CHUNK unless given. Under autocast the products are in its type.
    """
    device = h.device.type
    if torch.is_autocast_enabled(device):
        h, weight = (x.to(torch.get_autocast_dtype(device)) for x in (h, weight))
    out = torch.tensor(banned, dtype=torch.long, device=h.device)
    return _Nats.apply(h, weight, target, last_legal, out, max(1, (chunk or CHUNK) // len(weight)))


class _Nats(torch.autograd.Function):
    """nats = lse - x_target, where x = h weight^T and lse = log sum_k exp x_k; d nats / d x_k = exp(x_k - lse) - [k = target]."""

    @staticmethod
    def forward(ctx, h: Tensor, weight: Tensor, target: Tensor, last_legal: Tensor, banned: Tensor, n_rows: int) -> Tensor:
        lse = h.new_empty(len(h), dtype=torch.promote_types(h.dtype, torch.float32))
        nats = torch.empty_like(lse)
        for rows in _slices(len(h), n_rows):
            x = _logits(h[rows], weight, last_legal[rows], banned)
            lse[rows] = x.logsumexp(1)
            nats[rows] = lse[rows] - x.gather(1, target[rows, None])[:, 0]
        ctx.save_for_backward(h, weight, target, last_legal, banned, lse)
        ctx.n_rows = n_rows
        return nats

    @staticmethod
    def backward(ctx, grad: Tensor):
        h, weight, target, last_legal, banned, lse = ctx.saved_tensors
        d_h, d_weight = torch.empty_like(h), torch.zeros_like(weight, dtype=lse.dtype)
        for rows in _slices(len(h), ctx.n_rows):
            d = _logits(h[rows], weight, last_legal[rows], banned).sub_(lse[rows, None]).exp_()
            d.scatter_add_(1, target[rows, None], d.new_full((len(d), 1), -1.0))
            d = d.mul_(grad[rows, None]).to(h.dtype)
            d_h[rows] = d @ weight
            d_weight += d.T @ h[rows]  # summed over the chunks in float32 at least
        return d_h, d_weight.to(weight.dtype), None, None, None, None


def _logits(h: Tensor, weight: Tensor, last_legal: Tensor, banned: Tensor) -> Tensor:
    """(N, n) in float32 at least; -inf where a class cannot occur."""
    x = F.linear(h, weight)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x.index_fill_(1, banned, float("-inf"))
    x[:, -1].masked_fill_(~last_legal, float("-inf"))
    return x


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))
