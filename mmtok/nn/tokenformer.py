"""TokenFormer: linear maps as attention to tokens that are parameters, which can grow.

Wang et al. 2024, arXiv 2410.23168. A map of n parameter tokens (eq. 3, 4) is

    Pattention(x) = theta(x K^T) V,  theta(a) = gelu(a tau / norm(a))

with keys K (n, M), values V (n, N) and tau = sqrt(n). New tokens with keys of zero change nothing:
their a is 0, so are gelu(a) and their part of the norm. For that, tau stays the root of the first
n. Each generation of tokens is multiplied by itself and the results are added, so that outputs are
equal to the last bit: one longer product would add the same numbers in another order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN_SQUARE = 0.425  # of gelu(a) for a normal a: it keeps outputs of the size of a linear map's
EPS = 1e-12  # of the norm's square


class Pattention(nn.Module):
    """Attention to parameter tokens in the place of a linear map.

    n_in, n_out: M and N. n_tokens: of each generation; the first one sets tau. std: of the linear
    map that it stands for, which its first outputs are as large as.

    Attributes:
        decaying: the parameters that decay, as `decay_groups` asks for them.
    """

    def __init__(self, n_in: int, n_out: int, n_tokens: Sequence[int], std: float = 0.02):
        super().__init__()
        self.n_tokens = tuple(n_tokens)
        self.tau = self.n_tokens[0] ** 0.5
        names = []
        for i, n in enumerate(self.n_tokens):
            key = nn.Parameter(torch.empty(n, n_in).normal_(std=0.02))
            spread = std * (n_in / (MEAN_SQUARE * sum(self.n_tokens))) ** 0.5
            value = nn.Parameter(torch.empty(n, n_out).normal_(std=spread))
            self.register_parameter(f"key_{i}", key)
            self.register_parameter(f"value_{i}", value)
            names += [f"key_{i}", f"value_{i}"]
        self.decaying = tuple(names)

    def forward(self, x: Tensor) -> Tensor:
        """(..., M) -> (..., N)."""
        parts = [F.linear(x, self.get_parameter(f"key_{i}")) for i in range(len(self.n_tokens))]
        square = EPS + parts[0].square().sum(-1, keepdim=True)
        for a in parts[1:]:
            square = square + a.square().sum(-1, keepdim=True)
        scale = self.tau * torch.rsqrt(square)
        total = F.gelu(parts[0] * scale) @ self.get_parameter("value_0")
        for i, a in enumerate(parts[1:], 1):
            total = total + F.gelu(a * scale) @ self.get_parameter(f"value_{i}")
        return total

    @torch.no_grad()
    def silence(self, first: int) -> None:
        """Set the keys of the generations from `first` on to zero: they change no output yet."""
        for i in range(first, len(self.n_tokens)):
            self.get_parameter(f"key_{i}").zero_()


class TokenMap:
    """Maps that read the same input, as sampling runs them: x is multiplied by `gain` first.

    It keeps the type of its weights, whatever type the others' are; there is no bias.
    """

    bias: None = None

    def __init__(self, maps: Sequence[Pattention], gain: Tensor | None):
        self.maps = maps
        self.gain = gain
        self.weight = maps[0].get_parameter("key_0").detach()

    def __call__(self, x: Tensor) -> Tensor:
        """(..., M) -> (..., N)."""
        x = x.to(self.weight.dtype)
        if self.gain is not None:
            x = x * self.gain
        with torch.no_grad():
            return torch.cat([one(x) for one in self.maps], -1)
