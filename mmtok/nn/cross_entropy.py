"""Cross-entropy of a linear layer and a softmax, without saving the logits for the backward pass.

Letters: N rows, n classes, M width.

The gradient with respect to the logits, p - [k = target], is known in the forward pass. For small
tables it is saved in place of the logits, in the type of the products. For large ones only each
row's log-sum-exp is saved, and the backward pass computes the logits again, chunk by chunk (as
Wijmans et al., arXiv 2411.09009, do within a kernel). That costs one more matrix product and saves
N n numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmtok.nn.device import constant
from mmtok.nn.fused_nll import fused_d_logits, fused_row_sums, is_fused

# Up to so many logits saving their gradients costs less than a second product: 64 MiB in bfloat16;
# on a GPU 2 GiB, as its products are fast only where they are large.
MAX_SAVED_LOGITS = {"cpu": 2**25, "cuda": 2**30}
CHUNK_LOGITS = {"cpu": 2**24, "cuda": 2**28}  # logits in memory at once, beyond that


def upcast(x: Tensor) -> Tensor:
    """The same in float32 at least: half precision is for the layers, never for log p."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def class_nll(
    h: Tensor,
    weight: Tensor,
    target: Tensor,
    last_legal: Tensor,
    banned: Sequence[int] = (),
    chunk: int | None = None,
) -> Tensor:
    """-log p of the targets (N,), in nats, for the logits h weight^T: (N,), in float32 at least.

    Under autocast the products are in its type.

    Args:
        h: (N, M).
        weight: (n, M), a row per class.
        target: (N,).
        last_legal: (N,) bool, whether class n - 1 can occur in a row.
        banned: Classes that can occur in no row.
        chunk: Logits in memory at once; by default all of up to MAX_SAVED_LOGITS, else
            CHUNK_LOGITS.
    """
    device = h.device.type
    if torch.is_autocast_enabled(device):
        h = h.to(torch.get_autocast_dtype(device))
        weight = weight.to(torch.get_autocast_dtype(device))
    most = MAX_SAVED_LOGITS.get(device, MAX_SAVED_LOGITS["cpu"])
    save_grad = chunk is None and len(h) * len(weight) <= most
    n_rows = len(h)
    if not save_grad:
        n_rows = (chunk or CHUNK_LOGITS.get(device, CHUNK_LOGITS["cpu"])) // len(weight)
    banned_ids = constant(tuple(banned), h.device)
    return _ClassNLL.apply(h, weight, target, last_legal, banned_ids, max(1, n_rows), save_grad)


class _ClassNLL(torch.autograd.Function):
    """nll = lse - x_target, where x = h weight^T and lse = log sum_k exp x_k.

    d nll / d x_k = exp(x_k - lse) - [k = target]. save_grad: save these derivatives, of all rows at
    once; else save h, weight and lse, from which the backward pass computes them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        target: Tensor,
        last_legal: Tensor,
        banned: Tensor,
        n_rows: int,
        save_grad: bool,
    ) -> Tensor:
        """-log p of each row's target (N,), chunk by chunk of n_rows rows."""
        lse = h.new_empty(len(h), dtype=torch.promote_types(h.dtype, torch.float32))
        nll = torch.empty_like(lse)
        d_logits = None
        for rows in _slices(len(h), n_rows):
            x = _logits(h[rows], weight, banned)
            lse[rows], nll[rows] = _row_sums(x, target[rows], last_legal[rows])
            if save_grad and any(ctx.needs_input_grad):
                d_logits = _d_logits(x, lse, target, last_legal).to(h.dtype)
        ctx.save_for_backward(h, weight, target, last_legal, banned, lse, d_logits)
        ctx.n_rows = n_rows
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of h and weight, from p - [k = target] saved or made again chunk by chunk."""
        h, weight, target, last_legal, banned, lse, d_logits = ctx.saved_tensors
        if d_logits is not None:
            d_h = d_logits @ weight * grad[:, None]
            d_weight = d_logits.T @ (h * grad[:, None]).to(h.dtype)
            return d_h.to(h.dtype), d_weight, None, None, None, None, None
        d_h = torch.empty_like(h)
        d_weight = torch.zeros_like(weight, dtype=lse.dtype)  # chunks are summed in float32
        for rows in _slices(len(h), ctx.n_rows):
            x = _logits(h[rows], weight, banned)
            d = _d_logits(x, lse[rows], target[rows], last_legal[rows]).to(h.dtype)
            row_grad = grad[rows, None]
            d_h[rows] = d @ weight * row_grad
            d_weight += d.T @ (h[rows] * row_grad).to(h.dtype)
        return d_h, d_weight.to(weight.dtype), None, None, None, None, None


def _logits(h: Tensor, weight: Tensor, banned: Tensor) -> Tensor:
    """(N, n) in the products' type; -inf where a class can occur in no row."""
    x = F.linear(h, weight)
    if not len(banned):
        return x
    return x.index_fill_(1, banned, float("-inf"))


def _row_sums(x: Tensor, target: Tensor, last_legal: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits (N, n) the log-sum-exps over the legal classes and -log p of the targets, (N,)."""
    if is_fused(x):
        return fused_row_sums(x, target, last_legal)
    x = _legal(x, last_legal)
    lse = x.logsumexp(1)
    return lse, lse - x.gather(1, target[:, None])[:, 0]


def _d_logits(x: Tensor, lse: Tensor, target: Tensor, last_legal: Tensor) -> Tensor:
    """The derivatives of the nll with respect to the logits x (N, n), in their place."""
    if is_fused(x):
        return fused_d_logits(x, lse, target, last_legal)
    d = _legal(x, last_legal).sub_(lse[:, None]).exp_()
    return d.scatter_add_(1, target[:, None], d.new_full((len(d), 1), -1.0))


def _legal(x: Tensor, last_legal: Tensor) -> Tensor:
    """The logits in float32 at least; -inf in the last class where it cannot occur."""
    x = upcast(x)
    x[:, -1].masked_fill_(~last_legal, float("-inf"))
    return x


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))
