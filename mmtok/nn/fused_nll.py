"""Kernels of the cross-entropy on a GPU: a row of logits is read once for its sums.

Written in Triton, which comes with torch on a GPU. Elsewhere torch's own operations are used, see
cross_entropy.py. `TRITON_INTERPRET=1` runs the kernels on a CPU, slowly, for tests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.nn.device import missing_for_kernels

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for CPUs comes without it
    triton = None

BLOCK = 4096  # logits at a time
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def is_fused(x: Tensor) -> bool:
    """Whether the kernels serve these logits."""
    fits = x.is_cuda and x.dtype in DTYPES and x.is_contiguous()
    return fits and triton is not None and not missing_for_kernels()


def fused_row_sums(x: Tensor, target: Tensor, last_legal: Tensor) -> tuple[Tensor, Tensor]:
    """As `cross_entropy._row_sums`: lse and nll (N,) of logits (N, n), in float32."""
    lse = torch.empty(len(x), dtype=torch.float32, device=x.device)
    nll = torch.empty_like(lse)
    if len(x):
        _row_sums_kernel[(len(x),)](x, target, last_legal, lse, nll, x.shape[1], BLOCK=BLOCK)
    return lse, nll


def fused_d_logits(x: Tensor, lse: Tensor, target: Tensor, last_legal: Tensor) -> Tensor:
    """As `cross_entropy._d_logits`: exp(x - lse) - [k = target], written into x (N, n)."""
    if len(x):
        _d_logits_kernel[(len(x),)](x, target, last_legal, lse, x.shape[1], BLOCK=BLOCK)
    return x


if triton is not None:

    @triton.jit
    def _row_sums_kernel(
        x: tl.tensor,
        target: tl.tensor,
        last_legal: tl.tensor,
        lse: tl.tensor,
        nll: tl.tensor,
        n: tl.tensor,
        BLOCK: tl.constexpr,
    ) -> None:
        """One row: m + log sum_k exp(x_k - m) with the running maximum m of each lane."""
        row = tl.program_id(0).to(tl.int64)
        legal = tl.load(last_legal + row) != 0
        k = tl.arange(0, BLOCK)
        most = tl.full([BLOCK], -1e30, tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, n, BLOCK):
            at = start + k
            here = (at < n) & (legal | (at != n - 1))
            v = tl.load(x + row * n + at, mask=here, other=float("-inf")).to(tl.float32)
            more = tl.maximum(most, v)
            total = total * tl.exp(most - more) + tl.exp(v - more)
            most = more
        m = tl.max(most, 0)
        row_lse = m + tl.log(tl.sum(total * tl.exp(most - m), 0))
        chosen = tl.load(target + row)
        logit = tl.load(x + row * n + chosen).to(tl.float32)
        possible = legal | (chosen != n - 1)
        tl.store(lse + row, row_lse)
        tl.store(nll + row, tl.where(possible, row_lse - logit, float("inf")))

    @triton.jit
    def _d_logits_kernel(
        x: tl.tensor,
        target: tl.tensor,
        last_legal: tl.tensor,
        lse: tl.tensor,
        n: tl.tensor,
        BLOCK: tl.constexpr,
    ) -> None:
        """One block of a row after the other: p_k - [k = target], in place."""
        row = tl.program_id(0).to(tl.int64)
        legal = tl.load(last_legal + row) != 0
        chosen = tl.load(target + row)
        row_lse = tl.load(lse + row)
        k = tl.arange(0, BLOCK)
        for start in range(0, n, BLOCK):
            at = start + k
            inside = at < n
            v = tl.load(x + row * n + at, mask=inside, other=float("-inf")).to(tl.float32)
            p = tl.where(legal | (at != n - 1), tl.exp(v - row_lse), 0.0)
            p = tl.where(at == chosen, p - 1.0, p)
            tl.store(x + row * n + at, p.to(x.dtype.element_ty), mask=inside)
