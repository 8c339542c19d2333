"""What a network may predict, and how one prediction becomes another.

All predictions of one denoiser are the same information about an unscaled state x = y + sigma n.
Each is k (x - D) + m D with k and m functions of sigma alone, so that one pair of formulas converts
them all. x and predictions: (B, ...); sigma: (B,) or a scalar.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.diffusion.schedules import NoiseSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""D(x, sigma): unscaled states (B, ...) and their noise levels (B,) -> E[y | x], (B, ...)."""

Network = Callable[[Tensor, Tensor], Tensor]
"""F(c_in x, c_noise): scaled states (B, ...) and a number for the noise (B,) -> (B, ...).

Conditions are bound beforehand.
"""


@dataclass(frozen=True)
class Prediction:
    """prediction = k(sigma) (x - D) + m(sigma) D. k must differ from m at every sigma > 0."""

    name: str
    k: Callable[[Tensor], Tensor]
    m: Callable[[Tensor], Tensor]

    def of(self, denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """The prediction that belongs to a denoised state."""
        sigma = append_dims(sigma, x)
        return self.k(sigma) * (x - denoised) + self.m(sigma) * denoised

    def denoised(self, prediction: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """The inverse of `of`."""
        sigma = append_dims(sigma, x)
        return (self.k(sigma) * x - prediction) / (self.k(sigma) - self.m(sigma))


DENOISED = Prediction("denoised", torch.zeros_like, torch.ones_like)
# n, the eps of Ho et al. 2020
NOISE = Prediction("noise", lambda sigma: 1 / sigma, torch.zeros_like)
# grad log p(x; sigma): Karras et al. 2022, eq. 3
SCORE = Prediction("score", lambda sigma: -1 / sigma**2, torch.zeros_like)
# n - y, along CondOT's path
VELOCITY = Prediction("velocity", lambda sigma: 1 / sigma, lambda sigma: -torch.ones_like(sigma))


def convert(
    value: Tensor, x: Tensor, sigma: Tensor, source: Prediction, target: Prediction
) -> Tensor:
    """`value`, which is a prediction of kind `source` at (x, sigma), as one of kind `target`."""
    return target.of(source.denoised(value, x, sigma), x, sigma)


def denoiser_from(predict: Denoiser, kind: Prediction) -> Denoiser:
    """A denoiser from a callable that predicts something else of the same unscaled state."""
    return lambda x, sigma: kind.denoised(predict(x, sigma), x, sigma)


def preconditioned(
    network: Network, schedule: NoiseSchedule, dtype: torch.dtype | None = None
) -> Denoiser:
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise): Karras et al. 2022, eq. 7.

    dtype: what the network computes in (None: as x); the state around it keeps its own, float64 if
    x is given so.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        c = schedule.coefficients(as_sigmas(sigma, x))
        inner = dtype or x.dtype
        f = network((append_dims(c.c_in, x) * x).to(inner), c.c_noise.to(inner)).to(x.dtype)
        return append_dims(c.c_skip, x) * x + append_dims(c.c_out, x) * f

    return denoise


def as_sigmas(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Noise levels as (B,) float64 on x's device, from (B,) or a scalar."""
    return torch.as_tensor(sigma, dtype=torch.float64, device=x.device).expand(len(x))


def append_dims(c: Tensor | float, x: Tensor) -> Tensor:
    """c, (B,) or a scalar, in x's dtype and shaped to multiply x (B, ...)."""
    c = torch.as_tensor(c, dtype=x.dtype, device=x.device)
    if c.dim() == 0:
        return c
    return c.view(-1, *[1] * (x.dim() - 1))
