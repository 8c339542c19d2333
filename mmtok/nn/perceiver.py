"""Perceiver: many inputs read by few trained latents, at a cost linear in the inputs.

Jaegle et al. 2021, arXiv 2103.03206 (latents attend to inputs, then to themselves) and 2107.14795
(Perceiver IO: queries attend to the latents). Without positions in the inputs the latents do not
depend on their order. Weights are named as in `transformers`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.errors import UserError


@dataclass(frozen=True)
class PerceiverConfig:
    """Sizes of an encoder.

    Attributes:
        n_latents: N, how many latents read a segment, and so how many positions of a row it takes.
        depth: layers of attention among the latents.
        n_heads: of all attention.
        widening: of the feed-forwards, relative to the width.
        positions: frames carry their place in the segment, as sines and cosines; False is for sets.
    """

    n_latents: int = 32
    depth: int = 2
    n_heads: int = 4
    widening: int = 2
    positions: bool = True

    def __post_init__(self) -> None:
        for name in ("n_latents", "n_heads", "widening"):
            if getattr(self, name) < 1:
                raise UserError(f"PerceiverConfig: {name} is {getattr(self, name)}; at least 1")
        if self.depth < 0:
            raise UserError(f"PerceiverConfig: depth is {self.depth}; it must not be negative")


class _Heads(nn.Module):
    """Norms and the maps to queries, keys and values."""

    def __init__(self, width: int, input_width: int | None):
        super().__init__()
        self.layernorm1 = nn.LayerNorm(width)
        self.layernorm2: nn.Module = nn.Identity()
        if input_width is not None:
            self.layernorm2 = nn.LayerNorm(input_width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(input_width or width, width)
        self.value = nn.Linear(input_width or width, width)


class _Attention(nn.Module):
    def __init__(self, width: int, n_heads: int, input_width: int | None, residual: bool):
        super().__init__()
        if width % n_heads:
            raise UserError(f"a Perceiver's {n_heads} heads must divide its width, {width}")
        self.n_heads = n_heads
        self.residual = residual
        self.self = _Heads(width, input_width)
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, x: Tensor, inputs: Tensor | None, mask: Tensor | None) -> Tensor:
        """As `PerceiverLayer.forward`, without the feed-forward."""
        own = self.self
        normed = own.layernorm1(x)
        read = normed if inputs is None else own.layernorm2(inputs)
        q, k, v = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for part in (own.query(normed), own.key(read), own.value(read))
        )
        attn_mask = None if mask is None else mask[:, None, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        y = self.output["dense"](y.transpose(1, 2).flatten(2))
        if self.residual:
            return y + x
        return y


class _MLP(nn.Module):
    def __init__(self, width: int, widening: int):
        super().__init__()
        self.dense1 = nn.Linear(width, widening * width)
        self.dense2 = nn.Linear(widening * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., M) -> (..., M)."""
        return self.dense2(F.gelu(self.dense1(x)))


class PerceiverLayer(nn.Module):
    """Attention of latents or queries to inputs, or among themselves; then a feed-forward.

    input_width: of the inputs; None: x attends to itself. residual: x is added to what it reads.
    """

    def __init__(
        self,
        width: int,
        n_heads: int,
        widening: int,
        input_width: int | None = None,
        residual: bool = True,
    ):
        super().__init__()
        self.attention = _Attention(width, n_heads, input_width, residual)
        self.layernorm = nn.LayerNorm(width)
        self.mlp = _MLP(width, widening)

    def forward(
        self, x: Tensor, inputs: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """x (B, N, M), inputs (B, n, D) -> (B, N, M). mask (B, n) bool: which inputs count."""
        x = self.attention(x, inputs, mask)
        return x + self.mlp(self.layernorm(x))


class _Encoder(nn.Module):
    def __init__(self, config: PerceiverConfig, width: int, input_width: int):
        super().__init__()
        n = config.n_heads
        self.cross_attention = PerceiverLayer(width, n, config.widening, input_width)
        self.self_attends = nn.ModuleList(
            [PerceiverLayer(width, n, config.widening) for _ in range(config.depth)]
        )


class Perceiver(nn.Module):
    """Inputs (B, n, D) to N latents (B, N, M). The cost is O(N n) and O(N^2 depth)."""

    def __init__(self, config: PerceiverConfig, width: int, input_width: int):
        super().__init__()
        self.config = config
        latents = nn.Parameter(torch.randn(config.n_latents, width) * 0.02)
        self.embeddings = nn.ParameterDict({"latents": latents})
        self.encoder = _Encoder(config, width, input_width)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask (B, n) bool: which inputs count; at least one of each row."""
        if self.config.positions:
            inputs = inputs + sinusoids(inputs.shape[1], inputs.shape[2]).to(inputs)
        latents = self.embeddings["latents"]
        x = latents.expand(len(inputs), -1, -1).to(inputs.dtype)
        x = self.encoder.cross_attention(x, inputs, mask)
        for layer in self.encoder.self_attends:
            x = layer(x)
        return x


class PerceiverDecoder(nn.Module):
    """Perceiver IO's outputs: queries (B, O, M) read latents (B, N, D), each by itself.

    A set of queries gives a set of outputs: permuted queries give permuted outputs. The cost is
    O(O N).
    """

    def __init__(self, width: int, n_heads: int, widening: int, latent_width: int, n_out: int):
        super().__init__()
        self.decoding_cross_attention = PerceiverLayer(
            width, n_heads, widening, latent_width, residual=False
        )
        self.final_layer = nn.Linear(width, n_out)

    def forward(self, queries: Tensor, latents: Tensor) -> Tensor:
        """-> (B, O, n_out)."""
        return self.final_layer(self.decoding_cross_attention(queries, latents))


def sinusoids(n: int, width: int) -> Tensor:
    """(n, width): sines, then cosines, of the places from 0 on (Vaswani et al. 2017, 3.5)."""
    half = (width + 1) // 2
    frequency = 10_000.0 ** (-torch.arange(half) / half)
    angle = torch.arange(n)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)[:, :width]
