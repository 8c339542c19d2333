"""Encoders and decoders between images and vectors of patches: convolutions in stages, and ViTs.

Letters beyond the package's: C image channels, Y, X pixels, p patch side, so the grid is Y/p by
X/p; W channels, D numbers of a patch's vector. Nothing depends on the number of patches.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.autoencoder import ResidualConv
from mmtok.nn.denoisers import SelfAttention, grid_rope

HEAD_SIZE = 32  # or half of it where the width is no multiple
LEAST_WIDTH = 16  # of a stage


def prime_factors(n: int) -> list[int]:
    """Of n, ascending; [] of 1."""
    found = []
    factor = 2
    while n > 1:
        while n % factor == 0:
            found.append(factor)
            n //= factor
        factor += 1
    return found


def _n_heads(width: int) -> int:
    if width % HEAD_SIZE:
        return 2 * width // HEAD_SIZE
    return width // HEAD_SIZE


class GridAttention(nn.Module):
    """x + attention between all places of a grid: (B, W, Y, X) -> the same shape.

    It starts as the identity.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, _n_heads(width))
        nn.init.zeros_(self.attention.out.weight)
        nn.init.zeros_(self.attention.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, Y, X) -> (B, W, Y, X)."""
        rows = x.flatten(2).transpose(1, 2)
        rope = _rope(x.shape[2], x.shape[3], self.attention, x)
        added = self.attention(self.norm(rows), rope=rope)
        return x + added.transpose(1, 2).unflatten(2, x.shape[2:])


def _rope(n_rows: int, n_columns: int, attention: SelfAttention, x: Tensor) -> tuple[Tensor, ...]:
    head_size = attention.out.in_features // attention.n_heads
    cos, sin = grid_rope(n_rows, n_columns, head_size)
    return cos.to(x.device), sin.to(x.device)


# ---- stages


def _stages(patch: int, stages: int, width: int) -> tuple[list[int], list[int]]:
    """Factors of the patch's side from fine to coarse, and the channels after each.

    The first stage takes the factors that are more than `stages`.
    """
    factors = prime_factors(patch) or [1]
    n = min(stages, len(factors))
    n_first = len(factors) - n + 1
    factors = [math.prod(factors[:n_first]), *factors[n_first:]]
    widths = [max(min(LEAST_WIDTH, width), width // 2 ** (n - 1 - i)) for i in range(n)]
    return factors, widths


class StagedEncoder(nn.Module):
    """Image (B, C, Y, X) -> one vector per patch (B, Y/p, X/p, D)."""

    def __init__(
        self,
        channels: int,
        patch: int,
        stages: int,
        width: int,
        blocks: int,
        attention: bool,
        n_out: int,
    ):
        super().__init__()
        factors, widths = _stages(patch, stages, width)
        first = factors[0]
        layers = [
            nn.PixelUnshuffle(first),
            nn.Conv2d(channels * first**2, widths[0], 3, padding=1),
        ]
        for i, factor in enumerate(factors[1:]):
            layers.append(ResidualConv(widths[i]))
            layers.append(nn.GELU())
            layers.append(nn.Conv2d(widths[i], widths[i + 1], factor, stride=factor))
        layers += [ResidualConv(width) for _ in range(blocks)]
        if attention:
            layers.append(GridAttention(width))
        layers.append(nn.Conv2d(width, n_out, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, Y/p, X/p, D)."""
        return self.layers(images).permute(0, 2, 3, 1)


class StagedDecoder(nn.Module):
    """One vector per patch (B, Y/p, X/p, D) -> image (B, C, Y, X)."""

    def __init__(
        self,
        channels: int,
        patch: int,
        stages: int,
        width: int,
        blocks: int,
        attention: bool,
        n_in: int,
    ):
        super().__init__()
        factors, widths = _stages(patch, stages, width)
        layers: list[nn.Module] = [nn.Conv2d(n_in, width, 3, padding=1)]
        if attention:
            layers.append(GridAttention(width))
        layers += [ResidualConv(width) for _ in range(blocks)]
        for i in reversed(range(1, len(factors))):
            layers.append(nn.Conv2d(widths[i], widths[i - 1] * factors[i] ** 2, 1))
            layers.append(nn.PixelShuffle(factors[i]))
            layers.append(ResidualConv(widths[i - 1]))
        layers.append(nn.GELU())
        self.layers = nn.Sequential(*layers)
        self.out = nn.Conv2d(widths[0], channels * factors[0] ** 2, 3, padding=1)
        self.grow = nn.PixelShuffle(factors[0])

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, Y/p, X/p, D) -> (B, C, Y, X)."""
        return self.grow(self.out(self.layers(vectors.permute(0, 3, 1, 2))))


# ---- transformers


class ViTBlock(nn.Module):
    """Attention and an inner layer, each after a norm and added: (B, T, W) -> the same shape."""

    def __init__(self, width: int):
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attention = SelfAttention(width, _n_heads(width))
        self.before_inner = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        x = x + self.attention(self.before_attention(x), rope=rope)
        return x + self.out(F.gelu(self.inner(self.before_inner(x))))


class _ViT(nn.Module):
    """A linear layer, blocks over the patches of a grid, and one more."""

    def __init__(self, n_in: int, width: int, depth: int, n_out: int):
        super().__init__()
        self.first = nn.Linear(n_in, width)
        self.blocks = nn.ModuleList([ViTBlock(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, n_out)

    def over(self, grid: Tensor) -> Tensor:
        """(B, rows, columns, n_in) -> (B, rows, columns, n_out)."""
        n_rows, n_columns = grid.shape[1:3]
        x = self.first(grid.flatten(1, 2))
        first: Any = self.blocks[0]
        rope = _rope(n_rows, n_columns, first.attention, x)
        for block in self.blocks:
            x = block(x, rope)
        return self.out(self.norm(x)).unflatten(1, (n_rows, n_columns))


class ViTEncoder(_ViT):
    """Image (B, C, Y, X) -> one vector per patch (B, Y/p, X/p, D)."""

    def __init__(self, channels: int, patch: int, width: int, depth: int, n_out: int):
        super().__init__(channels * patch**2, width, depth, n_out)
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, Y/p, X/p, D)."""
        return self.over(F.pixel_unshuffle(images, self.patch).permute(0, 2, 3, 1))


class ViTDecoder(_ViT):
    """One vector per patch (B, Y/p, X/p, D) -> image (B, C, Y, X)."""

    def __init__(self, channels: int, patch: int, width: int, depth: int, n_in: int):
        super().__init__(n_in, width, depth, channels * patch**2)
        self.patch = patch

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, Y/p, X/p, D) -> (B, C, Y, X)."""
        return F.pixel_shuffle(self.over(vectors).permute(0, 3, 1, 2), self.patch)
