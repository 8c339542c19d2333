"""-log p of classes under a linear layer and a softmax, without holding the logits until the
backward pass.

N rows, n classes, M width. What comes back through a softmax is known going forward, p - [k =
target], so small tables of logits give way to it, in the products' type. Of large ones only each
row's log-sum-exp is kept; the backward pass computes them again, chunk by chunk (as Wijmans et al.,
arXiv 2411.09009, do within a kernel). That costs one more matrix product, and saves holding N n
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

WHOLE = (
    2**25
)  # logits up to which holding their gradients costs less than computing them again: 64 MiB in bfloat16
CHUNK = 2**24  # logits held at once beyond that


def class_nll(
    h: Tensor,
    weight: Tensor,
    target: Tensor,
    last_legal: Tensor,
    banned: Sequence[int] = (),
    chunk: int | None = None,
) -> Tensor:
    """(N,) -log p of `target` (N,), the logits being h (N, M) times weight (n, M), transposed; in
    float32 at least, as its sums are.

    last_legal: (N,) bool, whether class n - 1 can occur in a row; banned: classes that can in none.
    chunk: logits held at once; by default all of up to WHOLE, else CHUNK. Under autocast the
    products are in its type.
    """
    device = h.device.type
    if torch.is_autocast_enabled(device):
        h, weight = (x.to(torch.get_autocast_dtype(device)) for x in (h, weight))
    whole = chunk is None and len(h) * len(weight) <= WHOLE
    n_rows = max(1, len(h)) if whole else max(1, (chunk or CHUNK) // len(weight))
    out = torch.tensor(banned, dtype=torch.long, device=h.device)
    return _Nats.apply(h, weight, target, last_legal, out, n_rows, whole)


class _Nats(torch.autograd.Function):
    """nats = lse - x_target, where x = h weight^T and lse = log sum_k exp x_k; d nats / d x_k =
    exp(x_k - lse) - [k = target].

    whole: all rows at once, and these derivatives are kept; else h, weight and lse are, to compute
    them from.
    """

    @staticmethod
    def forward(
        ctx,
        h: Tensor,
        weight: Tensor,
        target: Tensor,
        last_legal: Tensor,
        banned: Tensor,
        n_rows: int,
        whole: bool,
    ) -> Tensor:
        lse = h.new_empty(len(h), dtype=torch.promote_types(h.dtype, torch.float32))
        nats, slopes = torch.empty_like(lse), None
        for rows in _slices(len(h), n_rows):
            x = _logits(h[rows], weight, last_legal[rows], banned)
            lse[rows] = x.logsumexp(1)
            nats[rows] = lse[rows] - x.gather(1, target[rows, None])[:, 0]
            if whole and any(ctx.needs_input_grad):
                slopes = _slopes(x, lse, target).to(h.dtype)
        ctx.save_for_backward(h, weight, target, last_legal, banned, lse, slopes)
        ctx.n_rows = n_rows
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        h, weight, target, last_legal, banned, lse, slopes = ctx.saved_tensors
        d_h, d_weight = torch.empty_like(h), torch.zeros_like(weight, dtype=lse.dtype)
        for rows in _slices(len(h), ctx.n_rows):
            d = slopes
            if d is None:
                d = _slopes(
                    _logits(h[rows], weight, last_legal[rows], banned), lse[rows], target[rows]
                ).to(h.dtype)
            by = grad[rows, None]
            d_h[rows] = d @ weight * by
            d_weight += d.T @ (h[rows] * by).to(
                h.dtype
            )  # summed over the chunks in float32 at least
        return d_h, d_weight.to(weight.dtype), None, None, None, None, None


def _slopes(x: Tensor, lse: Tensor, target: Tensor) -> Tensor:
    """D nats / d x (N, n), in the place of x."""
    d = x.sub_(lse[:, None]).exp_()
    return d.scatter_add_(1, target[:, None], d.new_full((len(d), 1), -1.0))


def _logits(h: Tensor, weight: Tensor, last_legal: Tensor, banned: Tensor) -> Tensor:
    """(N, n) in float32 at least; -inf where a class cannot occur."""
    x = F.linear(h, weight)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x.index_fill_(1, banned, float("-inf"))
    x[:, -1].masked_fill_(~last_legal, float("-inf"))
    return x


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))
