"""A KL autoencoder: images to standardised Gaussian latents and back (Kingma and Welling 2014; Rombach et al. 2022, section 3.1).

Letters beyond the package's: C image channels, Y, X pixels, p patch side, so the grid of latents is Y/p by X/p.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmtok.nn.conv import PatchDecoder, PatchEncoder


class Posterior(NamedTuple):
    """q(z | image) = N(mean, exp(log_variance)), each (B, Y/p, X/p, D)."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """mean + deviation times noise, which is drawn where the generator lives: (B, Y/p, X/p, D)."""
        home = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=home, dtype=self.mean.dtype)
        return self.mean + (self.log_variance / 2).exp() * noise.to(self.mean.device)

    def kl(self) -> Tensor:
        """KL(q || N(0, I)) in nats (B,): Kingma and Welling 2014, appendix B."""
        per_dimension = (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance) / 2
        return per_dimension.flatten(1).sum(1)


class KLAutoencoder(nn.Module):
    """Encoder to a mean and a log variance per latent, decoder, and the constants that give the latents mean 0 and variance 1.

    Trained on `decode(posterior.sample())` against the image plus a weight times `posterior.kl()`; then `standardise_over` the
    training set once. `latents` and `images` are for everyone after that.
    """

    log_variance_bounds = (-30.0, 20.0)

    def __init__(self, channels: int, patch: int, hidden: int, blocks: int, latent_size: int):
        super().__init__()
        self.encoder = PatchEncoder(channels, patch, hidden, blocks, 2 * latent_size)
        self.decoder = PatchDecoder(channels, patch, hidden, blocks, latent_size)
        self.register_buffer("shift", torch.zeros(latent_size))
        self.register_buffer("scale", torch.ones(latent_size))

    def posterior(self, images: Tensor) -> Posterior:
        """Images (B, C, Y, X) -> q(z | image), not standardised."""
        mean, log_variance = self.encoder(images).chunk(2, -1)
        return Posterior(mean, log_variance.clamp(*self.log_variance_bounds))

    def decode(self, z: Tensor) -> Tensor:
        """z (B, Y/p, X/p, D), not standardised -> images (B, C, Y, X)."""
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
        """Set the constants from the means of q over the training set (..., D): then these have mean 0 and variance 1 in each
        of the D channels. Refused where a channel never varies: nothing is encoded in it."""
        rows = means.reshape(-1, means.shape[-1]).double()
        scale = rows.std(0, correction=0)
        if not bool((scale > 1e-6).all()):
            idle = (scale <= 1e-6).nonzero()[:, 0].tolist()
            raise ValueError(f"latent channels {idle} never vary: lower the weight of the KL term, or latent_size")
        self.shift.copy_(rows.mean(0))
        self.scale.copy_(scale)
