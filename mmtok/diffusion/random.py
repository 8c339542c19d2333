"""Random numbers of this room.

They are drawn on the generator's device and then moved, so that one seed means one result on any
device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor


class RowGenerators:
    """A generator for each of N rows, so that a row's numbers are those that it would have alone.

    It takes the place of a torch.Generator where the first dimension of all that is drawn is N
    times the same, a row's numbers next to each other.
    """

    def __init__(self, generators: Sequence[torch.Generator]):
        self.generators = list(generators)

    def select(self, rows: Sequence[int]) -> RowGenerators:
        """Those of these rows."""
        return RowGenerators([self.generators[row] for row in rows])


def drawn(
    make: Callable[..., Tensor],
    shape: Sequence[int],
    like: Tensor,
    generator: torch.Generator | RowGenerators | None,
    dtype: torch.dtype,
) -> Tensor:
    """What torch.rand, torch.randn or the like makes of a shape, on the device of `like`.

    generator: None is torch's global one; `RowGenerators` make the numbers of their rows.
    """
    if isinstance(generator, RowGenerators):
        n = len(generator.generators)
        if shape[0] % n:
            raise ValueError(f"{shape[0]} numbers cannot be shared out among {n} rows")
        part = (shape[0] // n, *shape[1:])
        rows = [drawn(make, part, like, g, dtype) for g in generator.generators]
        return torch.cat(rows)
    device = like.device
    if generator is not None:
        device = generator.device
    return make(tuple(shape), generator=generator, device=device, dtype=dtype).to(like.device)


def normal_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """N(0, 1), of x's shape, dtype and device."""
    return drawn(torch.randn, x.shape, x, generator, x.dtype)


def rademacher_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """-1 or 1 with equal probability, of x's shape, dtype and device."""
    bits = drawn(partial(torch.randint, 0, 2), x.shape, x, generator, torch.long)
    return (bits * 2 - 1).to(x.dtype)


def uniform(
    shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """[0, 1) in float64 whatever `like`'s dtype, on its device."""
    return drawn(torch.rand, shape, like, generator, torch.float64)


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
