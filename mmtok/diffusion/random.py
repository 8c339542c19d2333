"""Random numbers of this room.

They are drawn on the generator's device and then moved, so that one seed means one result on any
device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def normal_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """N(0, 1), of x's shape, dtype and device."""
    device = _drawn_on(x, generator)
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


def rademacher_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """-1 or 1 with equal probability, of x's shape, dtype and device."""
    device = _drawn_on(x, generator)
    bits = torch.randint(0, 2, x.shape, generator=generator, device=device)
    return (bits * 2 - 1).to(x.device, x.dtype)


def uniform(
    shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """[0, 1) in float64 whatever `like`'s dtype, on its device."""
    device = _drawn_on(like, generator)
    drawn = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
    return drawn.to(like.device)


def stratified(n: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One uniform number in each n-th of [0, 1), in random order: (n,).

    Each number alone is uniform; together they give a batch's noise levels less variance (Kingma
    et al. 2021, arXiv 2107.00630, appendix I.1: one draw, shifted n times).
    """
    shifts = torch.arange(n, device=like.device, dtype=torch.float64) / n
    shifted = (uniform((1,), like, generator) + shifts) % 1
    return shifted[uniform((n,), like, generator).argsort()]


def inverse_cdf(p: Tensor, u: Tensor) -> Tensor:
    """The category at quantile u: p (..., K), not negative; u (...) in [0, 1) -> long (...).

    p need not sum to 1. A category with p = 0 is never returned; K is returned where p is NaN.
    """
    cumulated = p.cumsum(-1)
    quantile = u[..., None] * cumulated[..., -1:]
    return torch.searchsorted(cumulated, quantile, right=True)[..., 0]


def choose(log_p: Tensor, u: Tensor) -> Tensor:
    """The category at quantile u of a softmax: log_p (..., K), u (...) in [0, 1) -> long (...).

    Computed in float64: in lower precision, truncated noise quietly sharpens a distribution (Zheng
    et al. 2024, arXiv 2409.02908).
    """
    p = log_p.double().softmax(-1)
    return inverse_cdf(p, u.double()).clamp(max=log_p.shape[-1] - 1)


def _drawn_on(x: Tensor, generator: torch.Generator | None) -> torch.device:
    if generator is None:
        return x.device
    return generator.device
