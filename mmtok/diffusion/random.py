"""Random numbers of this room: drawn where the generator lives and then moved, so that one seed
means one result on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def normal_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """N(0, 1), of x's shape, dtype and device."""
    return torch.randn(x.shape, generator=generator, device=_home(x, generator), dtype=x.dtype).to(
        x.device
    )


def rademacher_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """-1 or 1, evenly, of x's shape, dtype and device."""
    return (
        torch.randint(0, 2, x.shape, generator=generator, device=_home(x, generator)) * 2 - 1
    ).to(x.device, x.dtype)


def uniform(
    shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """[0, 1) in float64 whatever `like`'s dtype, on its device."""
    return torch.rand(
        shape, generator=generator, device=_home(like, generator), dtype=torch.float64
    ).to(like.device)


def stratified(n: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """N uniform numbers (n,) in [0, 1), one per n-th of the interval, in random order: a batch's
    noise levels with less variance.

    Each number alone is uniform (Kingma et al. 2021, arXiv 2107.00630, appendix I.1: one draw,
    shifted n times).
    """
    shifted = (
        uniform((1,), like, generator)
        + torch.arange(n, device=like.device, dtype=torch.float64) / n
    ) % 1
    return shifted[uniform((n,), like, generator).argsort()]


def choose(log_p: Tensor, u: Tensor) -> Tensor:
    """The category at quantile u of a distribution, in float64: log_p (..., K), u (...) in [0, 1)
    -> long (...).

    float64 because truncated noise quietly sharpens a distribution (Zheng et al. 2024, arXiv
    2409.02908).
    """
    cumulated = log_p.double().softmax(-1).cumsum(-1)
    below = u.double()[..., None] * cumulated[..., -1:]  # rounding may leave the total beside 1
    return torch.searchsorted(cumulated, below, right=True)[..., 0].clamp(max=log_p.shape[-1] - 1)


def _home(x: Tensor, generator: torch.Generator | None) -> torch.device:
    return x.device if generator is None else generator.device
