"""Images as codes: pixel levels without training, or learned patch codes.

An image is uint8, (Y, X) grey or (Y, X, 3) RGB.

Both spend one id per frame, row by row. A colour pixel is three frames: red, green, blue. So a
colour image needs no head, and its likelihood is exact, value by value. torch is imported only
where patch codes are used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.io import memory_budget
from mmtok.tokenizers.autoencoders import Autoencoder, ConvPatches
from mmtok.tokenizers.base import checked_codes
from mmtok.tokenizers.image_losses import ImageLosses
from mmtok.tokenizers.patches import (
    ImageConfig,
    ImageTokenizer,
    NetworkConfig,
    PatchNetwork,
    check_size,
    checked_image,
    levels_fingerprint,
    to_grey,
    to_levels,
    without_grey_axis,
)
from mmtok.tokenizers.quantizers import VQ, Quantizer

if TYPE_CHECKING:
    import torch

    from mmtok.nn.autoencoder import PatchAutoencoder


PIXEL_BYTES = 24  # of memory per value, in either direction


@dataclass(frozen=True)
class PixelsConfig(ImageConfig):
    """Images as pixel levels: nothing to learn.

    Attributes:
        height: in pixels. With None, as the width then is too, any size; the segment's info keeps
            it.
        width: in pixels.
        channels: 1 grey, 3 RGB; None: grey where the size is fixed, else as each image has them.
        n_levels: a value v of 0..255 becomes level round(v (n_levels - 1) / 255); 256 loses
            nothing, 17 is what scikit-learn's digits have.
    """

    height: int | None = None
    width: int | None = None
    channels: int | None = None
    n_levels: int = 17

    def __post_init__(self) -> None:
        check_size(self)
        if (self.height is None) != (self.width is None):
            raise UserError(
                f"PixelsConfig: height is {self.height} and width is {self.width}; give both, or"
                " neither for images of any size"
            )
        if not 2 <= self.n_levels <= 256:
            raise UserError(f"PixelsConfig: n_levels is {self.n_levels}; it must be 2 to 256")

    @property
    def takes(self) -> dict[str, int | None]:
        """The images that the tokenizer takes; None: of any size, grey or RGB."""
        channels = self.channels
        if self.height is not None:
            channels = channels or 1
        return {"height": self.height, "width": self.width, "channels": channels}

    def build(self) -> Pixels:
        """The tokenizer: nothing is to be learned."""
        return Pixels(self)

    def load(self, folder: Path) -> Pixels:
        """Open the tokenizer that was saved in `folder`."""
        return Pixels.load(folder)


class Pixels(ImageTokenizer):
    """Image <-> codes (T, 1), T = height x width x channels.

    Off by at most half a level: 255 / (n_levels - 1) / 2 grey values.
    """

    config_type = PixelsConfig
    fewer_frames = (
        "one for each pixel and colour: a tokenizer that has learned patches makes fewer"
        " (--tokenizer RUN/tokenizers/image, of recipes/image.py), and so do smaller pictures"
    )

    def __init__(self, config: PixelsConfig):
        self.config = config
        # (Y, X, C); None: as each image has them
        self._size = (config.height, config.width, config.takes["channels"])
        frames = None
        if config.height is not None:
            frames = math.prod(n for n in self._size if n is not None)
        self.signature = Signature(
            "image",
            levels=(config.n_levels,),
            frames=frames,
            fingerprint=levels_fingerprint("Pixels", config),
        )

    def encode(self, signal: np.ndarray) -> Segment:
        """uint8 (Y, X) or (Y, X, 3) -> codes (T, 1) int32.

        Raises UserError on another size, kind or type.
        """
        image = checked_image(signal, *self._size)
        what = f"a picture of {image.size:,} values as codes"
        memory_budget.check(PIXEL_BYTES * image.size, "image", what)
        codes = to_levels(image.reshape(-1, 1), self.config.n_levels)
        height, width, channels = image.shape
        info = {"height": height, "width": width, "channels": channels}
        return Segment("image", codes=codes, info=info)

    def decode(self, segment: Segment) -> np.ndarray:
        """Codes (T, 1) -> uint8 image.

        Without a size: the nearest square, grey unless channels is 3. Missing pixels are black.
        """
        codes = checked_codes(segment, self.signature)[:, 0]
        shape = self._shape(len(codes), segment.info)
        n_values = math.prod(shape)
        what = f"a picture of {' x '.join(map(str, shape))} values"
        memory_budget.check(PIXEL_BYTES * n_values, "image", what)
        values = np.zeros(n_values, np.uint8)
        n = min(n_values, len(codes))
        values[:n] = to_grey(codes[:n], self.config.n_levels)
        return without_grey_axis(values.reshape(shape))

    def _shape(self, n_codes: int, info: Mapping[str, Any]) -> tuple[int, int, int]:
        """(Y, X, C) of the image that `n_codes` codes make."""
        height, width, fixed_channels = self._size
        channels = fixed_channels or int(info.get("channels", 1))
        if height is not None and width is not None:
            return height, width, channels
        if "height" in info and "width" in info:
            return int(info["height"]), int(info["width"]), channels
        side = max(1, round((n_codes / channels) ** 0.5))
        return side, side, channels

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """The single calls, one after another: images may be large."""
        return [self.encode(image) for image in signals]

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """The single calls, one after another."""
        return [self.decode(segment) for segment in segments]


@dataclass(frozen=True)
class VQPatchesConfig(NetworkConfig):
    """Images of one size as learned codes of patches; trained by `mmtok.train.tokenizer_fit`.

    Attributes:
        height: in pixels.
        width: in pixels.
        patch: its side in pixels, which divides both; one frame per patch.
        channels: 1 grey, 3 RGB.
        quantizer: how a patch's vector becomes codes; with `ResidualVQ` a frame has several.
        autoencoder: the networks between pixels and vectors.
        losses: what training lowers.
        steps: of training.
    """

    height: int = 8
    width: int = 8
    channels: int = 1
    patch: int = 2
    quantizer: Quantizer = VQ()
    autoencoder: Autoencoder = ConvPatches()
    losses: ImageLosses = ImageLosses()
    steps: int = 1400

    def __post_init__(self) -> None:
        check_size(self, patch=1, steps=1)

    def signature(self) -> Signature:
        """Without the fingerprint, which is of the weights."""
        return Signature("image", self.quantizer.levels, frames=self.n_patches)

    def network(self) -> PatchAutoencoder:
        """A new, untrained network of these sizes."""
        from mmtok.nn.autoencoder import PatchAutoencoder

        encoder = self.autoencoder.encoder(self.channels, self.patch, self.quantizer.size)
        decoder = self.autoencoder.decoder(self.channels, self.patch, self.quantizer.size)
        return PatchAutoencoder(encoder, self.quantizer.look_up(), decoder)

    def trained(self, network: PatchAutoencoder) -> VQPatches:
        """The tokenizer of a trained network."""
        return VQPatches(self, network)

    def load(self, folder: Path) -> VQPatches:
        """Open the tokenizer that was saved in `folder`."""
        return VQPatches.load(folder)


class VQPatches(PatchNetwork):
    """Image <-> codes (T, C), a frame per patch, row by row; C is 1 but for `ResidualVQ`.

    Lossy. `fidelity` adds `codebook_use`, the share of codes that occur, and `codebook_perplexity`:
    the means over the C codebooks.
    """

    config_type = VQPatchesConfig

    def __init__(self, config: VQPatchesConfig, network: PatchAutoencoder):
        super().__init__(config, network, levels=config.quantizer.levels)

    def _encode_frames(self, images: torch.Tensor) -> np.ndarray:
        codes = self._run(self._network.codes, images, self._n_pixels)
        found: np.ndarray = codes.flatten(1, 2).numpy()
        return found.astype(np.int32)

    def _checked_frames(self, segment: Segment) -> np.ndarray:
        codes = checked_codes(segment, self.signature)
        if len(codes) != self.signature.frames:
            raise UserError(
                f"image: {len(codes)} frames of codes, this tokenizer needs {self.signature.frames}"
            )
        return codes

    def _on_grid(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.long().unflatten(1, self.config.grid)

    def _figures(self, segments: Sequence[Segment]) -> dict[str, float]:
        import torch

        from mmtok.nn.quantize import codebook_figures

        levels = self.config.quantizer.levels
        codes = np.concatenate([segment.values.reshape(-1, len(levels)) for segment in segments])
        use, perplexity = codebook_figures(torch.from_numpy(codes), levels)
        return {"codebook_use": use, "codebook_perplexity": perplexity}
