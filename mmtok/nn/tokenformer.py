"""TokenFormer: linear maps as attention to tokens that are parameters, which can grow.

Wang et al. 2024, arXiv 2410.23168. A map of n parameter tokens (eq. 3, 4) is

    Pattention(x) = theta(x K^T) V,  theta(a) = gelu(a tau / norm(a))

with keys K (n, M), values V (n, N) and tau = sqrt(n). New tokens with keys of zero change nothing:
their a is 0, so are gelu(a) and their part of the norm. For that, tau stays the root of the first
n. Each generation of tokens is multiplied by itself and the results are added, so that outputs are
equal to the last bit: one longer product would add the same numbers in another order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.nn.inference_linear import Linear, WeightPrecision, prepare_linear

EPS = 1e-12  # of the norm's square


class Pattention(nn.Module):
    """Attention to parameter tokens in the place of a linear map.

    n_in, n_out: M and N. n_tokens: of each generation; the first one sets tau. std: of the linear
    map that it stands for, which its first outputs are as large as, all generations together.

    Attributes:
        decaying: the parameters that decay, as `decay_groups` asks for them.
    """

    def __init__(self, n_in: int, n_out: int, n_tokens: Sequence[int], std: float = 0.02):
        super().__init__()
        self.n_tokens = tuple(n_tokens)
        self.tau = self.n_tokens[0] ** 0.5
        total = sum(self.n_tokens)
        # |a| is over all tokens and tau of the first ones, so that is the spread of a tau / |a|
        square = gelu_square(self.tau / total**0.5)
        spread = std * (n_in / (square * total)) ** 0.5
        names = []
        for i, n in enumerate(self.n_tokens):
            key = nn.Parameter(torch.empty(n, n_in).normal_(std=0.02))
            value = nn.Parameter(torch.empty(n, n_out).normal_(std=spread))
            self.register_parameter(f"key_{i}", key)
            self.register_parameter(f"value_{i}", value)
            names += [f"key_{i}", f"value_{i}"]
        self.decaying = tuple(names)

    def forward(self, x: Tensor) -> Tensor:
        """(..., M) -> (..., N)."""
        generations = range(len(self.n_tokens))
        products = [F.linear(x, self.get_parameter(f"key_{i}")) for i in generations]
        shares = theta(products, self.tau)
        total = shares[0] @ self.get_parameter("value_0")
        for i in generations[1:]:
            total = total + shares[i] @ self.get_parameter(f"value_{i}")
        return total

    @torch.no_grad()
    def silence(self, first: int) -> None:
        """Set the keys of the generations from `first` on to zero: they change no output yet."""
        for i in range(first, len(self.n_tokens)):
            self.get_parameter(f"key_{i}").zero_()


def theta(products: Sequence[Tensor], tau: float) -> list[Tensor]:
    """gelu(a tau / norm(a)) of each generation's part of a, (..., n) each; the norm is of all."""
    square = EPS + products[0].square().sum(-1, keepdim=True)
    for a in products[1:]:
        square = square + a.square().sum(-1, keepdim=True)
    scale = tau * torch.rsqrt(square)
    return [F.gelu(a * scale) for a in products]


def gelu_square(std: float) -> float:
    """The mean of gelu(a)^2, where a is normal with mean 0 and this standard deviation s.

    By parts: s^2 (1/4 + asin(r) / 2 pi + r / (pi sqrt(1 + 2 s^2))), r = s^2 / (1 + s^2).
    """
    s2 = std * std
    r = s2 / (1 + s2)
    tail = r / (math.pi * (1 + 2 * s2) ** 0.5)
    return s2 * (0.25 + math.asin(r) / (2 * math.pi) + tail)


class TokenMap:
    """Maps that read the same input, as sampling runs them, with the weights of a norm folded in.

    It holds copies of the weights, in the precision that sampling asks for; the norm of a is in
    float32 at least. There is no bias.
    """

    bias: None = None

    def __init__(
        self,
        maps: Sequence[Pattention],
        gain: Tensor | None,
        precision: WeightPrecision = "float32",
        n_rows: int = 1,
    ):
        """gain (M,): what x is multiplied by first; n_rows: about how many rows x has."""
        self.maps = [_Prepared(one, gain, precision, n_rows) for one in maps]
        self.weights = [linear.weight for one in self.maps for linear in one.keys + one.values]
        self.weight = self.weights[0]

    def __call__(self, x: Tensor) -> Tensor:
        """(..., M) -> (..., N)."""
        return torch.cat([one(x) for one in self.maps], -1)


class _Prepared:
    """A `Pattention` of weights that do not learn; generations stay products of their own."""

    def __init__(
        self, one: Pattention, gain: Tensor | None, precision: WeightPrecision, n_rows: int
    ):
        self.tau = one.tau
        self.keys: list[Linear] = []
        self.values: list[Linear] = []
        for i in range(len(one.n_tokens)):
            key = one.get_parameter(f"key_{i}").detach().clone()
            if gain is not None:
                key *= gain.detach()
            value = one.get_parameter(f"value_{i}").detach().T.clone()
            self.keys.append(prepare_linear(key, None, precision, n_rows))
            self.values.append(prepare_linear(value, None, precision, n_rows))

    def __call__(self, x: Tensor) -> Tensor:
        """(..., M) -> (..., N)."""
        products = [key(x) for key in self.keys]
        shares = theta(
            [a.to(torch.promote_types(a.dtype, torch.float32)) for a in products], self.tau
        )
        total = self.values[0](shares[0])
        for value, share in zip(self.values[1:], shares[1:], strict=True):
            total = total + value(share)
        return total
