"""Images as latents, for diffusion heads: scaled pixels, or the latents of a learned autoencoder.

A frame is a patch of the image; frames follow each other row by row. An image is uint8, (Y, X) grey
or (Y, X, 3) RGB. Letters beyond the package's: C image channels, Y, X pixels, p patch side, so an
image has T = (Y/p)(X/p) frames. torch is imported only where a network is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.tokenizers.autoencoders import Autoencoder, ConvPatches
from mmtok.tokenizers.base import checked_latents, spreads
from mmtok.tokenizers.image_losses import ImageLosses
from mmtok.tokenizers.patches import (
    ImageTokenizer,
    NetworkConfig,
    PatchConfig,
    PatchNetwork,
    check_size,
    checked_image,
    levels_fingerprint,
    to_grey,
    to_levels,
    without_grey_axis,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mmtok.nn.autoencoder import KLAutoencoder


@dataclass(frozen=True)
class PixelLatentsConfig(PatchConfig):
    """Images of one size as pixels scaled to -1..1: nothing to learn.

    Attributes:
        height: in pixels.
        width: in pixels.
        channels: 1 grey, 3 RGB.
        n_levels: as of `PixelsConfig`: 256 loses nothing, 17 is what scikit-learn's digits have.
        patch: its side in pixels, which divides both; a frame has patch x patch x channels latents.
    """

    height: int = 8
    width: int = 8
    channels: int = 1
    n_levels: int = 17
    patch: int = 2

    def __post_init__(self) -> None:
        check_size(self, patch=1, n_levels=2)
        if self.n_levels > 256:
            raise UserError(f"PixelLatentsConfig: n_levels is {self.n_levels}; it must be 2 to 256")

    def build(self) -> PixelLatents:
        """The tokenizer: nothing is to be learned."""
        return PixelLatents(self)

    def load(self, folder: Path) -> PixelLatents:
        """Open the tokenizer that was saved in `folder`."""
        return PixelLatents.load(folder)


class PixelLatents(ImageTokenizer):
    """Image <-> latents (T, C p p): level k is the centre of the k-th of `n_levels` cells of -1..1.

    Off by at most half a level: 255 / (n_levels - 1) / 2 grey values. Within a frame the image
    channels follow each other, each row by row, as in torch's pixel_unshuffle.
    """

    config_type = PixelLatentsConfig

    def __init__(self, config: PixelLatentsConfig):
        self.config = config
        self.signature = Signature(
            "image",
            latent_size=config.channels * config.patch**2,
            frames=config.n_patches,
            cells=config.n_levels,
            fingerprint=levels_fingerprint("PixelLatents", config),
        )

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """uint8 images (Y, X) or (Y, X, 3) of the config's size -> latents (T, D) float32.

        Raises UserError on anything else.
        """
        c = self.config
        segments = []
        for signal in signals:
            image = checked_image(signal, c.height, c.width, c.channels)
            levels = to_levels(image, c.n_levels)
            latents = (2 * self._to_patches(levels) + 1) / c.n_levels - 1
            segments.append(Segment("image", latents=latents.astype(np.float32), info=c.info))
        return segments

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Latents (T, D), each taken as the nearest level -> uint8 images.

        Raises UserError on another shape, and on NaN.
        """
        c = self.config
        signals = []
        for segment in segments:
            latents = checked_latents(segment, self.signature).astype(np.float64)
            cells = np.floor((latents.clip(-1, 1) + 1) / 2 * c.n_levels)
            levels = cells.clip(0, c.n_levels - 1).astype(np.int64)
            signals.append(without_grey_axis(to_grey(self._to_pixels(levels), c.n_levels)))
        return signals

    def _to_patches(self, pixels: np.ndarray) -> np.ndarray:
        """(Y, X, C) -> (T, C p p)."""
        rows, columns = self.config.grid
        p = self.config.patch
        n_channels = self.config.channels
        split = pixels.reshape(rows, p, columns, p, n_channels)
        return split.transpose(0, 2, 4, 1, 3).reshape(rows * columns, -1)

    def _to_pixels(self, patches: np.ndarray) -> np.ndarray:
        """The inverse of `_to_patches`."""
        c = self.config
        split = patches.reshape(*c.grid, c.channels, c.patch, c.patch)
        return split.transpose(0, 3, 1, 4, 2).reshape(c.height, c.width, c.channels)


@dataclass(frozen=True)
class KLPatchesConfig(NetworkConfig):
    """Images of one size as the latents of a KL autoencoder, one frame per patch.

    Trained by `mmtok.train.tokenizer_fit`.

    Attributes:
        height: in pixels.
        width: in pixels.
        patch: its side in pixels, which divides both.
        channels: 1 grey, 3 RGB.
        latent_size: numbers per patch.
        autoencoder: the networks between pixels and latents.
        losses: what training lowers, next to the KL term.
        steps: of training.
        kl_weight: of the KL term, in nats per pixel value, next to the mean squared error of values
            in -1..1; 2 s^2 is right for a decoder that is off by s.
    """

    height: int = 8
    width: int = 8
    channels: int = 1
    patch: int = 2
    latent_size: int = 4
    autoencoder: Autoencoder = ConvPatches()
    losses: ImageLosses = ImageLosses()
    steps: int = 1400
    kl_weight: float = 1e-3

    def __post_init__(self) -> None:
        check_size(self, patch=1, latent_size=1, steps=1, kl_weight=0)
        if not math.isfinite(self.kl_weight):
            raise UserError(
                f"KLPatchesConfig: kl_weight is {self.kl_weight}; it must be a finite number, at"
                " least 0"
            )

    def signature(self) -> Signature:
        """Without the fingerprint, which is of the weights."""
        return Signature("image", latent_size=self.latent_size, frames=self.n_patches)

    def network(self) -> KLAutoencoder:
        """A new, untrained network of these sizes."""
        from mmtok.nn.autoencoder import KLAutoencoder

        encoder = self.autoencoder.encoder(self.channels, self.patch, 2 * self.latent_size)
        decoder = self.autoencoder.decoder(self.channels, self.patch, self.latent_size)
        return KLAutoencoder(encoder, decoder, self.latent_size)

    def load(self, folder: Path) -> KLPatches:
        """Open the tokenizer that was saved in `folder`."""
        return KLPatches.load(folder)


class KLPatches(PatchNetwork):
    """Image <-> latents (T, D), each of the D with mean 0 and variance 1 over the training set.

    Lossy. `fidelity` adds the `spreads` of the latents. An image's latents are the means of the
    encoder's posterior, so nothing is random.
    """

    config_type = KLPatchesConfig

    def __init__(self, config: KLPatchesConfig, network: KLAutoencoder):
        super().__init__(config, network, latent_size=config.latent_size)

    def _typed(self, network: nn.Module) -> nn.Module:
        """In float64: latents are rounded to float32, so that they are equal in every bit."""
        return network.double()

    def _run(self, function: Callable, values: torch.Tensor, n_pixels: int) -> torch.Tensor:
        """As many at once as there are: that shows in no bit of float32."""
        found: torch.Tensor = function(values.double())
        return found

    def _encode_frames(self, images: torch.Tensor) -> np.ndarray:
        latents = self._run(self._network.latents, images, self._n_pixels)
        found: np.ndarray = latents.flatten(1, 2).float().numpy()
        return found

    def _checked_frames(self, segment: Segment) -> np.ndarray:
        return checked_latents(segment, self.signature)

    def _on_grid(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.unflatten(1, self.config.grid)

    def _figures(self, segments: Sequence[Segment]) -> dict[str, float]:
        return spreads(segments)
