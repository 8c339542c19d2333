"""Convolutions between an image and its grid of patches.

Letters beyond the package's: C image channels, Y, X pixels, p patch side, so the grid is Y/p by
X/p; W hidden channels, D latent size.
Every layer reads beyond its own patch, so neighbours can carry what a patch leaves out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.quantize import LookUp


class ResidualConv(nn.Module):
    """x + conv(gelu(conv(gelu(x)))): (B, W, Y, X) -> the same shape."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, Y, X) -> (B, W, Y, X)."""
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
        """(B, C, Y, X) -> (B, Y/p, X/p, D)."""
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
        """(B, Y/p, X/p, D) -> (B, C, Y, X)."""
        x = self.blocks(self.stem(vectors.permute(0, 3, 1, 2)))
        return self.out(F.gelu(self.grow(F.gelu(x))))


class PatchAutoencoder(nn.Module):
    """Encoder, look-up and decoder, as one set of weights."""

    def __init__(self, encoder: nn.Module, codebook: LookUp, decoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.codebook = codebook
        self.decoder = decoder

    def codes(self, images: Tensor) -> Tensor:
        """Images (B, C, Y, X) -> codes (B, Y/p, X/p, codes of a patch)."""
        return self.codebook.codes(self.encoder(images))

    def images(self, codes: Tensor) -> Tensor:
        """Codes (B, Y/p, X/p, codes of a patch) -> images (B, C, Y, X)."""
        return self.decoder(self.codebook(codes))


# ---- Gaussian latents (Kingma and Welling 2014; Rombach et al. 2022, section 3.1)


class Posterior(NamedTuple):
    """q(z | image) = N(mean, exp(log_variance)), each (B, Y/p, X/p, D)."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Mean + standard deviation x noise: (B, Y/p, X/p, D)."""
        device = self.mean.device
        if generator is not None:
            device = generator.device
        noise = torch.randn(
            self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype
        )
        return self.mean + (self.log_variance / 2).exp() * noise.to(self.mean.device)

    def kl(self) -> Tensor:
        """KL(q || N(0, I)) in nats (B,): Kingma and Welling 2014, appendix B."""
        per_dimension = (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance) / 2
        return per_dimension.flatten(1).sum(1)


class KLAutoencoder(nn.Module):
    """Images to standardised Gaussian latents and back.

    Training lowers the error of `decode(posterior.sample())` plus a weight times `posterior.kl()`.
    After it, `standardise_over` is called once with the training set, so that the latents have mean
    0 and variance 1. From then on `latents` and `images` can be used.
    """

    log_variance_bounds = (-30.0, 20.0)
    shift: Tensor
    scale: Tensor

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent_size: int):
        """The encoder's vectors have 2 x latent_size numbers: means, and log variances."""
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.register_buffer("shift", torch.zeros(latent_size))
        self.register_buffer("scale", torch.ones(latent_size))

    def posterior(self, images: Tensor) -> Posterior:
        """Images (B, C, Y, X) -> q(z | image), z not standardised."""
        mean, log_variance = self.encoder(images).chunk(2, -1)
        return Posterior(mean, log_variance.clamp(*self.log_variance_bounds))

    def decode(self, z: Tensor) -> Tensor:
        """Latents z (B, Y/p, X/p, D), not standardised -> images (B, C, Y, X)."""
        return self.decoder(z)

    def latents(self, images: Tensor) -> Tensor:
        """Images (B, C, Y, X) -> the standardised mean of q (B, Y/p, X/p, D)."""
        return self.standardised(self.posterior(images).mean)

    def images(self, latents: Tensor) -> Tensor:
        """Standardised latents (B, Y/p, X/p, D) -> images (B, C, Y, X)."""
        return self.decode(latents * self.scale + self.shift)

    def standardised(self, z: Tensor) -> Tensor:
        """(z - shift) / scale: (..., D) -> (..., D)."""
        return (z - self.shift) / self.scale

    @torch.no_grad()
    def standardise_over(self, means: Tensor) -> None:
        """Set shift and scale so that these means of q (..., D) get mean 0 and variance 1.

        Raises ValueError for channels that never vary: nothing is encoded in them.
        """
        rows = means.reshape(-1, means.shape[-1]).double()
        scale = rows.std(0, correction=0)
        if not bool((scale > 1e-6).all()):
            idle = (scale <= 1e-6).nonzero()[:, 0].tolist()
            raise ValueError(
                f"latent channels {idle} never vary: lower the weight of the KL term, or"
                " latent_size"
            )
        self.shift.copy_(rows.mean(0))
        self.scale.copy_(scale)
