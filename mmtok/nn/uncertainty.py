"""Losses of different size, each weighed by a variance or a gradient's norm, learned beside it.

L exp(-u) + u, with u = log sigma^2. It is least at exp(u) = L, so that a variance becomes the mean
of its loss, and every loss counts relative to what is left of it. Of tasks this is twice the loss
of Kendall et al. 2018 (arXiv 1705.07115, equation 7), of noise levels that of Karras et al. 2024
(arXiv 2312.02696, equation 14).

In the place of L its gradient's norm G by what the tasks share can stand: L exp(-u), whose u is led
to exp(u) = G by 1 - G exp(-u) in the place of its own gradient. Then all tasks pull alike, as
GradNorm would have it (Chen et al. 2018, arXiv 1711.02257, equations 1 and 2, with alpha 0), at the
cost of no second backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.nn.conditioning import fourier_features

# u of a task is this many times its parameter, so that a learning rate for weights takes u across a
# factor of a thousand in some hundred steps. Over noise levels u is a sum of many features with a
# weight each, and needs no such factor.
GAIN = 10.0
# A loss that hardly depends on what is shared must not outweigh all others without bound.
LEAST_LOG_NORM = -16.0


def relative(loss: Tensor, log_variance: Tensor, n: int | Tensor = 1) -> Tensor:
    """A sum of n losses and log sigma^2 -> the sum of L exp(-u) + u."""
    return loss * torch.exp(-log_variance) + n * log_variance


def balanced(loss: Tensor, log_norm: Tensor, n: int | Tensor = 1) -> Tensor:
    """A sum of n losses and log G -> the sum of L exp(-u) + u, of which u learns by its 1 alone.

    What is left of its gradient comes from `measuring_norm`.
    """
    bounded = log_norm.detach().clamp(min=LEAST_LOG_NORM)
    return loss * torch.exp(-bounded) + n * log_norm


def measuring_norm(h: Tensor, log_norm: Tensor) -> Tensor:
    """States h (n, M) as they are, which lead log G to their gradient's norm.

    Of n losses, each by one state, it is the root of the mean square of the norms. Where the whole
    loss is divided by a number, so is what log G gets, as everything else.
    """
    return _MeasuringNorm.apply(h, log_norm)


class _MeasuringNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, log_norm: Tensor) -> Tensor:
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (g,) = grads
        return g, -(g.float().norm() * len(g) ** 0.5)


class TaskVariances(nn.Module):
    """log sigma^2, or log G, of each of some losses, by name; 0 at first."""

    def __init__(self, names: Iterable[str]):
        super().__init__()
        self.parameters_of = nn.ParameterDict({name: torch.zeros(1) for name in names})

    def forward(self) -> dict[str, Tensor]:
        """Name -> log sigma^2, a scalar."""
        return {name: GAIN * p[0] for name, p in self.parameters_of.items()}


class _Linear(nn.Module):
    """A linear map that starts at 0.

    No nn.Linear, so that it does not decay: that would pull sigma towards 1.
    """

    def __init__(self, width: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_out, width))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) -> (N, n_out)."""
        return F.linear(x, self.weight, self.bias)


class NoiseVariance(nn.Module):
    """log sigma^2 of a denoising loss, a function of the noise level; 0 at first."""

    n_features = 32

    def __init__(self) -> None:
        super().__init__()
        self.out = _Linear(self.n_features, 1)

    def forward(self, c_noise: Tensor) -> Tensor:
        """Noise levels (N,) as networks are given them -> (N,); under autocast too in float32."""
        features = fourier_features(c_noise, self.n_features)
        with torch.autocast(c_noise.device.type, enabled=False):
            return self.out(features.to(self.out.weight.dtype))[:, 0]
