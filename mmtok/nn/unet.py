"""A small U-Net denoiser of images of any size, alone or as a super-resolution stage of a cascade.

Sources: Ho et al. 2020 (arXiv 2006.11239, appendix B); blocks modulated by their condition as in
Dhariwal and Nichol 2021 (arXiv 2105.05233, section 3); the low-resolution image and its noise as
inputs, Ho et al. 2022 (arXiv 2106.15282).

Letters beyond the package's: C image channels, Y, X pixels, W a block's channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtok.nn.conditioning import (
    ConditionConfig,
    Conditioning,
    TimestepEmbedding,
    modulate,
    zero_module,
)
from mmtok.nn.denoisers import SelfAttention


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a U-Net.

    Attributes:
        widths: channels at each resolution, from the full one down; each has half the pixels per
            side of the one before.
        blocks: per resolution.
        n_heads: of the attention at the lowest resolution.
    """

    widths: tuple[int, ...] = (32, 64, 64)
    blocks: int = 2
    n_heads: int = 4

    def __post_init__(self) -> None:
        if (
            not self.widths
            or min(*self.widths, self.blocks, self.n_heads) < 1
            or self.widths[-1] % self.n_heads
        ):
            raise ValueError(
                "a U-Net needs a width per resolution, the last a multiple of n_heads, and a block"
                f" per resolution; got widths {self.widths}, n_heads {self.n_heads}, blocks"
                f" {self.blocks}"
            )

    def build(self, shape: tuple[int, int, int], patch: int, condition: ConditionConfig) -> UNet:
        """The network for pictures of `shape` (C, Y, X); it reads pixels, whatever the patch."""
        return UNet(self, shape[0], condition)


class UNetBlock(nn.Module):
    """skip(x) + conv(silu(modulate norm(conv(silu(norm x))))): (B, W, Y, X) -> (B, n_out, Y, X).

    The branch is 0 before training.
    """

    def __init__(self, n_in: int, n_out: int, conditioning: int):
        super().__init__()
        self.norm = _group_norm(n_in)
        self.first = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.modulation = nn.Linear(conditioning, 2 * n_out)
        self.inner_norm = _group_norm(n_out)
        self.second = zero_module(nn.Conv2d(n_out, n_out, 3, padding=1))
        self.skip = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        """Images x (B, W, Y, X), conditioning (B, M) -> (B, n_out, Y, X)."""
        shift, scale = self.modulation(F.silu(conditioning)).chunk(2, 1)
        y = self.inner_norm(self.first(F.silu(self.norm(x))))
        y = modulate(y.movedim(1, -1), shift, scale).movedim(-1, 1)
        return self.skip(x) + self.second(F.silu(y))


class PixelAttention(nn.Module):
    """x + attention among all pixels: (B, W, Y, X) -> as x. The branch is 0 before training."""

    def __init__(self, channels: int, n_heads: int):
        super().__init__()
        self.norm = _group_norm(channels)
        self.attention = SelfAttention(channels, n_heads)
        zero_module(self.attention.out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, Y, X) -> (B, W, Y, X)."""
        y = self.attention(self.norm(x).flatten(2).transpose(1, 2))
        return x + y.transpose(1, 2).unflatten(2, x.shape[2:])


class UNet(nn.Module):
    """Down, through the lowest resolution with attention, and up again with skip connections."""

    def __init__(
        self,
        config: UNetConfig,
        channels: int,
        condition: ConditionConfig | None = None,
        low_channels: int = 0,
    ):
        """Build the network for images of `channels`.

        low_channels: of the low-resolution image that a super-resolution stage reads; 0 is none.
        """
        super().__init__()
        widths = config.widths
        conditioning = 4 * widths[0]
        self.low_channels = low_channels
        self.conditioning = Conditioning(conditioning, condition)
        self.aug_noise = TimestepEmbedding(conditioning) if low_channels else None
        self.enter = nn.Conv2d(channels + low_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        above = widths[0]
        for here in widths:
            shrink: nn.Module = nn.Identity()
            if len(self.down):
                shrink = nn.Conv2d(above, above, 3, stride=2, padding=1)
            self.shrink.append(shrink)
            self.down.append(_blocks(above, here, conditioning, config.blocks))
            above = here
        lowest = widths[-1]
        self.middle = nn.ModuleList([UNetBlock(lowest, lowest, conditioning) for _ in range(2)])
        self.attention = PixelAttention(lowest, config.n_heads)
        self.up = nn.ModuleList()
        self.grow = nn.ModuleList()
        below = lowest
        for here in reversed(widths):
            grow: nn.Module = nn.Identity()
            if len(self.up):
                grow = nn.Conv2d(below, below, 3, padding=1)
            self.grow.append(grow)
            self.up.append(_blocks(below, here, conditioning, config.blocks, skip=here))
            below = here
        self.norm = _group_norm(widths[0])
        self.out = zero_module(nn.Conv2d(widths[0], channels, 3, padding=1))

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        condition: Tensor | None = None,
        dropped: Tensor | None = None,
        low: Tensor | None = None,
        aug_noise: Tensor | None = None,
    ) -> Tensor:
        """Images x (B, C, Y, X), c_noise (B,) -> (B, C, Y, X).

        Args:
            x: (B, C, Y, X), the noisy images.
            c_noise: (B,), the preconditioned noise level.
            condition: As in `Conditioning.forward`.
            dropped: As in `Conditioning.forward`.
            low: (B, low_channels, y, x), the low-resolution image, of variance near 1. It is
                resized to x here.
            aug_noise: (B,), the share of low's variance that is noise, in [0, 1]
                (`noise_condition` of the room diffusion).
        """
        needed = bool(self.low_channels)
        if (low is not None) != needed or (aug_noise is not None) != needed:
            raise ValueError(
                "a super-resolution U-Net needs the low-resolution picture and its noise level, and"
                " no other takes them"
            )
        conditioning = self.conditioning(c_noise, condition, dropped)
        if low is not None and self.aug_noise is not None:
            x = torch.cat([x, F.interpolate(low, x.shape[2:], mode="bilinear")], 1)
            conditioning = conditioning + self.aug_noise(aug_noise)
        x = self.enter(x)
        skips = []
        for shrink, blocks in zip(self.shrink, self.down, strict=True):
            x = shrink(x)
            for block in cast(nn.ModuleList, blocks):
                x = block(x, conditioning)
                skips.append(x)
        x = self.middle[0](x, conditioning)
        x = self.middle[1](self.attention(x), conditioning)
        for grow, blocks in zip(self.grow, self.up, strict=True):
            # resized to the skip connection: an odd side was rounded up on the way down
            x = grow(F.interpolate(x, skips[-1].shape[2:], mode="nearest"))
            for block in cast(nn.ModuleList, blocks):
                x = block(torch.cat([x, skips.pop()], 1), conditioning)
        return self.out(F.silu(self.norm(x)))


def _blocks(n_in: int, n_out: int, conditioning: int, n: int, skip: int = 0) -> nn.ModuleList:
    """The blocks at one resolution; each also reads `skip` channels of a skip connection."""
    inputs = [n_in] + [n_out] * (n - 1)
    return nn.ModuleList([UNetBlock(i + skip, n_out, conditioning) for i in inputs])


def _group_norm(channels: int) -> nn.GroupNorm:
    """Groups within one image, of at least four channels where the number allows."""
    return nn.GroupNorm(math.gcd(8, max(1, channels // 4)), channels)
