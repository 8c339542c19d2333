"""Losses of different size, each weighed by a variance that is learned beside it.

L exp(-u) + u, with u = log sigma^2. It is least at exp(u) = L, so that a variance becomes the mean
of its loss, and every loss counts relative to what is left of it. Of tasks this is twice the loss
of Kendall et al. 2018 (arXiv 1705.07115, equation 7), of noise levels that of Karras et al. 2024
(arXiv 2312.02696, equation 14).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.nn.conditioning import fourier_features

# u of a task is this many times its parameter, so that a learning rate for weights takes u across a
# factor of a thousand in some hundred steps. Over noise levels u is a sum of many features with a
# weight each, and needs no such factor.
GAIN = 10.0


def relative(loss: Tensor, log_variance: Tensor, n: int | Tensor = 1) -> Tensor:
    """A sum of n losses and log sigma^2 -> the sum of L exp(-u) + u."""
    return loss * torch.exp(-log_variance) + n * log_variance


class TaskVariances(nn.Module):
    """log sigma^2 of each of some losses, by name; 0 at first."""

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
