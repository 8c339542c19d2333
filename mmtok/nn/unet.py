"""A small U-Net denoiser of images of any size, alone or as the super-resolution stage of a
cascade.

Sources: Ho et al. 2020 (arXiv 2006.11239, appendix B); blocks scaled and shifted by what they are
told, as in Dhariwal and Nichol 2021 (arXiv 2105.05233, section 3); the low-resolution picture and
its noise level as inputs, Ho et al. 2022 (arXiv 2106.15282). Letters beyond the package's: C image
channels, Y, X pixels, W a block's channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    """widths: channels of each level, from full resolution down, each level half as fine as the one
    before. blocks: per level.
    """

    widths: tuple[int, ...] = (32, 64, 64)
    blocks: int = 2
    n_heads: int = 4

    def __post_init__(self):
        if (
            not self.widths
            or min(*self.widths, self.blocks, self.n_heads) < 1
            or self.widths[-1] % self.n_heads
        ):
            raise ValueError(
                "a U-Net needs a width per level, the last a multiple of n_heads, and a block per"
                f" level; got widths {self.widths}, n_heads {self.n_heads}, blocks {self.blocks}"
            )


class UNetBlock(nn.Module):
    """x + conv(silu(modulate norm(conv(silu(norm x))))): (B, W, Y, X) -> (B, n_out, Y, X).

    The branch starts at 0.
    """

    def __init__(self, n_in: int, n_out: int, conditioning: int):
        super().__init__()
        self.norm, self.first = _group_norm(n_in), nn.Conv2d(n_in, n_out, 3, padding=1)
        self.modulation = nn.Linear(conditioning, 2 * n_out)
        self.inner_norm, self.second = (
            _group_norm(n_out),
            zero_module(nn.Conv2d(n_out, n_out, 3, padding=1)),
        )
        self.skip = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        shift, scale = self.modulation(F.silu(conditioning)).chunk(2, 1)
        y = self.inner_norm(self.first(F.silu(self.norm(x))))
        y = modulate(y.movedim(1, -1), shift, scale).movedim(-1, 1)
        return self.skip(x) + self.second(F.silu(y))


class PixelAttention(nn.Module):
    """x + attention among all pixels: (B, W, Y, X) -> the same shape. The branch starts at 0."""

    def __init__(self, channels: int, n_heads: int):
        super().__init__()
        self.norm, self.attention = _group_norm(channels), SelfAttention(channels, n_heads)
        zero_module(self.attention.out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(self.norm(x).flatten(2).transpose(1, 2))
        return x + y.transpose(1, 2).unflatten(2, x.shape[2:])


class UNet(nn.Module):
    """Down, across the coarsest level with attention, and up again beside what was seen on the way
    down.
    """

    def __init__(
        self,
        config: UNetConfig,
        channels: int,
        condition: ConditionConfig | None = None,
        low_channels: int = 0,
    ):
        """low_channels: of the low-resolution picture that a super-resolution stage is given; 0 is
        none.
        """
        super().__init__()
        widths, conditioning = config.widths, 4 * config.widths[0]
        self.low_channels = low_channels
        self.conditioning = Conditioning(conditioning, condition)
        self.low_level = TimestepEmbedding(conditioning) if low_channels else None
        self.enter = nn.Conv2d(channels + low_channels, widths[0], 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for above, here in zip((widths[0], *widths), widths):
            self.shrink.append(
                nn.Conv2d(above, above, 3, stride=2, padding=1) if len(self.down) else nn.Identity()
            )
            self.down.append(
                nn.ModuleList(
                    [
                        UNetBlock(here if i else above, here, conditioning)
                        for i in range(config.blocks)
                    ]
                )
            )
        self.middle = nn.ModuleList(
            [UNetBlock(widths[-1], widths[-1], conditioning) for _ in range(2)]
        )
        self.attention = PixelAttention(widths[-1], config.n_heads)
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for here, below in reversed(list(zip(widths, (*widths[1:], widths[-1])))):
            self.grow.append(
                nn.Conv2d(below, below, 3, padding=1) if len(self.up) else nn.Identity()
            )
            self.up.append(
                nn.ModuleList(
                    [
                        UNetBlock((here if i else below) + here, here, conditioning)
                        for i in range(config.blocks)
                    ]
                )
            )
        self.norm, self.out = (
            _group_norm(widths[0]),
            zero_module(nn.Conv2d(widths[0], channels, 3, padding=1)),
        )

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        condition: Tensor | None = None,
        dropped: Tensor | None = None,
        low: Tensor | None = None,
        low_level: Tensor | None = None,
    ) -> Tensor:
        """X (B, C, Y, X), c_noise (B,), condition and dropped as in `Told` -> (B, C, Y, X).

        low (B, low_channels, y, x): the low-resolution picture, of variance near 1, made as large
        as x here; low_level (B,): the share of its variance that is noise, in [0, 1]
        (`noise_condition` of the diffusion room).
        """
        if (low is None, low_level is None) != (not self.low_channels,) * 2:
            raise ValueError(
                "a super-resolution U-Net needs the low-resolution picture and its noise level, and"
                " no other takes them"
            )
        conditioning = self.conditioning(c_noise, condition, dropped)
        if low is not None:
            x = torch.cat([x, F.interpolate(low, x.shape[2:], mode="bilinear")], 1)
            conditioning = conditioning + self.low_level(low_level)
        x, kept = self.enter(x), []
        for shrink, blocks in zip(self.shrink, self.down):
            x = shrink(x)
            for block in blocks:
                x = block(x, conditioning)
                kept.append(x)
        x = self.middle[1](self.attention(self.middle[0](x, conditioning)), conditioning)
        for grow, blocks in zip(self.grow, self.up):
            x = grow(
                F.interpolate(x, kept[-1].shape[2:], mode="nearest")
            )  # an odd side was rounded up on the way down
            for block in blocks:
                x = block(torch.cat([x, kept.pop()], 1), conditioning)
        return self.out(F.silu(self.norm(x)))


def _group_norm(channels: int) -> nn.GroupNorm:
    """Groups within one image, of at least four channels where the number allows."""
    return nn.GroupNorm(math.gcd(8, max(1, channels // 4)), channels)
