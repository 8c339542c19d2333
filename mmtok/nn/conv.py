"""Convolutions between an image and its grid of patches.

Letters beyond the package's: C image channels, Y, X pixels, p patch side, so the grid is Y/p by X/p; W hidden channels, D latent size.
Every layer looks beyond its own patch: what a patch leaves out, its neighbours can tell.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.quantize import Codebook


class ResidualConv(nn.Module):
    """x + conv(gelu(conv(gelu(x)))): (B, W, Y, X) -> the same shape."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.gelu(self.first(F.gelu(x))))


class PatchEncoder(nn.Module):
    """Image (B, C, Y, X) -> one vector per patch (B, Y/p, X/p, D)."""

    def __init__(self, channels: int, patch: int, hidden: int, blocks: int, latent_size: int):
        super().__init__()
        self.stem = nn.Conv2d(channels, hidden, 3, padding=1)
        self.shrink = nn.Conv2d(hidden, hidden, patch, stride=patch)
        self.blocks = nn.Sequential(*[ResidualConv(hidden) for _ in range(blocks)])
        self.out = nn.Conv2d(hidden, latent_size, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.shrink(F.gelu(self.stem(images)))
        return self.out(self.blocks(x)).permute(0, 2, 3, 1)


class PatchDecoder(nn.Module):
    """One vector per patch (B, Y/p, X/p, D) -> image (B, C, Y, X)."""

    def __init__(self, channels: int, patch: int, hidden: int, blocks: int, latent_size: int):
        super().__init__()
        self.stem = nn.Conv2d(latent_size, hidden, 3, padding=1)
        self.blocks = nn.Sequential(*[ResidualConv(hidden) for _ in range(blocks)])
        self.grow = nn.ConvTranspose2d(hidden, hidden, patch, stride=patch)
        self.out = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, vectors: Tensor) -> Tensor:
        x = self.blocks(self.stem(vectors.permute(0, 3, 1, 2)))
        return self.out(F.gelu(self.grow(F.gelu(x))))


class PatchAutoencoder(nn.Module):
    """Encoder, codebook of K vectors and decoder, as one set of weights."""

    def __init__(self, channels: int, patch: int, hidden: int, blocks: int, code_size: int, n_codes: int):
        super().__init__()
        self.encoder = PatchEncoder(channels, patch, hidden, blocks, code_size)
        self.codebook = Codebook(n_codes, code_size)
        self.decoder = PatchDecoder(channels, patch, hidden, blocks, code_size)

    def codes(self, images: Tensor) -> Tensor:
        """Images (B, C, Y, X) -> codes (B, Y/p, X/p)."""
        return self.codebook.nearest(self.encoder(images))

    def images(self, codes: Tensor) -> Tensor:
        """Codes (B, Y/p, X/p) -> images (B, C, Y, X)."""
        return self.decoder(self.codebook(codes))
