"""Images as latents, which diffusion heads draw: pixels on an axis of numbers, without training, or
a learned autoencoder's.

A frame is a patch of the image, frames follow each other in raster order. An image is uint8, (Y, X)
grey or (Y, X, 3) RGB. Letters beyond the package's: C image channels, Y, X pixels, p patch side, so
an image has T = (Y/p)(X/p) frames. torch is imported only where a network is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.tokenizers.base import checked_latents, fingerprint, spreads
from mmtok.tokenizers.patches import (
    ImageTokenizer,
    PatchGrid,
    PatchNetwork,
    check_size,
    checked_image,
    to_grey,
    to_levels,
    without_grey_axis,
)

if TYPE_CHECKING:
    import torch

    from mmtok.nn.autoencoder import KLAutoencoder


@dataclass(frozen=True)
class PixelLatentsConfig(PatchGrid):
    """Images of one size as pixels on the axis from -1 to 1: nothing to learn.

    height, width, patch  in pixels; the patch divides both; a frame has patch x patch x channels
                          latents
    channels              1 grey, 3 RGB
    levels                as of `PixelsConfig`: 256 loses nothing, 17 is what scikit-learn's digits
                          have
    """

    height: int = 8
    width: int = 8
    channels: int = 1
    levels: int = 17
    patch: int = 2

    def __post_init__(self):
        check_size(self, patch=1, levels=2)
        if self.levels > 256:
            raise UserError(f"PixelLatentsConfig: levels is {self.levels}; it must be 2 to 256")

    def build(self) -> PixelLatents:
        """The tokenizer: nothing is to be learned."""
        return PixelLatents(self)


class PixelLatents(ImageTokenizer):
    """Image <-> latents (T, C p p): level k stands at the centre of the k-th of `levels` even cells
    of the axis.

    Off by at most half a level: 255 / (levels - 1) / 2 grey values. Within a frame, the patch of
    one image channel follows that of another, each row by row, as torch's pixel_unshuffle lays them
    out.
    """

    config_type = PixelLatentsConfig

    def __init__(self, config: PixelLatentsConfig):
        self.config = config
        rows, columns = config.grid
        self.signature = Signature(
            "image",
            latent_size=config.channels * config.patch**2,
            frames=rows * columns,
            cells=config.levels,
            fingerprint=fingerprint("PixelLatents", asdict(config)),
        )

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """uint8 images (Y, X) or (Y, X, 3) of the config's size -> latents (T, D) float32.

        Raises UserError on anything else.
        """
        c = self.config
        segments = []
        for signal in signals:
            image = checked_image(signal, c.height, c.width, c.channels)
            patches = (
                to_levels(image, c.levels)
                .reshape(c.grid[0], c.patch, c.grid[1], c.patch, c.channels)
                .transpose(0, 2, 4, 1, 3)
            )
            latents = (2 * patches + 1) / c.levels - 1
            segments.append(
                Segment(
                    "image",
                    latents=latents.reshape(self.signature.frames, -1).astype(np.float32),
                    info=c.info,
                )
            )
        return segments

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Latents (T, D), each taken as the nearest level -> uint8 images.

        Raises UserError on another shape, and on NaN.
        """
        c = self.config
        signals = []
        for segment in segments:
            latents = checked_latents(
                segment, self.signature.latent_size, self.signature.frames
            ).astype(np.float64)
            levels = (
                np.floor((latents.clip(-1, 1) + 1) / 2 * c.levels)
                .clip(0, c.levels - 1)
                .astype(np.int64)
            )
            patches = levels.reshape(*c.grid, c.channels, c.patch, c.patch).transpose(0, 3, 1, 4, 2)
            signals.append(
                without_grey_axis(to_grey(patches.reshape(c.height, c.width, c.channels), c.levels))
            )
        return signals


@dataclass(frozen=True)
class KLPatchesConfig(PatchGrid):
    """Images of one size as the latents of a KL autoencoder, one frame per patch; trained by
    `mmtok.train.tokenizer_fit`.

    height, width, patch  in pixels; the patch divides both
    channels     1 grey, 3 RGB
    latent_size  numbers per patch
    hidden       channels of the convolutions; blocks: residual blocks in encoder and decoder each
    steps        of training
    kl_weight    nats of KL per pixel value, beside the mean squared error of values in -1..1: 2 s^2
                 stands for a decoder that is off by s
    """

    height: int = 8
    width: int = 8
    channels: int = 1
    patch: int = 2
    latent_size: int = 4
    hidden: int = 64
    blocks: int = 1
    steps: int = 1400
    kl_weight: float = 1e-3

    def __post_init__(self):
        check_size(self, patch=1, latent_size=1, hidden=1, blocks=0, steps=1, kl_weight=0)
        if not math.isfinite(self.kl_weight):
            raise UserError(
                f"KLPatchesConfig: kl_weight is {self.kl_weight}; it must be a finite number, at"
                " least 0"
            )

    def network(self) -> KLAutoencoder:
        """A new, untrained network of these sizes."""
        from mmtok.nn.autoencoder import KLAutoencoder

        return KLAutoencoder(self.channels, self.patch, self.hidden, self.blocks, self.latent_size)


class KLPatches(PatchNetwork):
    """Image <-> latents (T, D), each of the D with mean 0 and variance 1 over the training set.

    Lossy: `fidelity` measures by how much, and also the `spreads` of the latents.

    An image's latents are the means of what the encoder says of it, so they are always the same.
    """

    config_type = KLPatchesConfig

    def __init__(self, config: KLPatchesConfig, network: KLAutoencoder):
        super().__init__(config, network, latent_size=config.latent_size)

    def _frames(self, images: torch.Tensor) -> np.ndarray:
        return self._network.latents(images).flatten(1, 2).float().numpy()

    def _checked(self, segment: Segment) -> np.ndarray:
        return checked_latents(segment, self.config.latent_size, self.signature.frames)

    def _on_grid(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.double().unflatten(1, self.config.grid)

    def _figures(self, segments: Sequence[Segment]) -> dict[str, float]:
        return spreads(segments)
