"""Images: pixel levels without training, or learned patch codes.

An image is uint8, (Y, X) grey or (Y, X, 3) RGB.

Both spend one id per frame, in raster order (left to right, then top to bottom). Colour pixels give
three frames each: red, green, blue; so a colour image needs no head of its own and its likelihood
is exact, value by value. torch is imported only where patch codes are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.io import memory_budget
from mmtok.tokenizers.base import fingerprint
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

    from mmtok.nn.autoencoder import PatchAutoencoder


PIXEL_BYTES = 24  # per value while pixels become codes and codes pixels


def checked_codes(segment: Segment, levels: int) -> np.ndarray:
    """The codes (T,) of an image segment.

    Raises UserError when they are not (T, 1) codes in [0, levels).
    """
    codes = segment.codes
    if codes is None or codes.shape[1] != 1:
        raise UserError(f"image: expected codes of shape (T, 1), got {segment.values.shape}")
    if codes.size and not (codes.min() >= 0 and codes.max() < levels):
        raise UserError(
            f"image: codes run from {codes.min()} to {codes.max()}, this tokenizer has 0 to"
            f" {levels - 1}"
        )
    return codes[:, 0]


@dataclass(frozen=True)
class PixelsConfig:
    """Images as pixel levels: nothing to learn.

    height, width  in pixels; both None: any size, kept in the segment's info
    channels       1 grey, 3 RGB; None: grey where the size is fixed, and as each image comes where
                   it is free
    levels         a value v of 0..255 becomes level round(v (levels - 1) / 255); 256 loses nothing,
                   17 is what scikit-learn's digits have
    """

    height: int | None = None
    width: int | None = None
    channels: int | None = None
    levels: int = 17
    modality: ClassVar[str] = "image"

    def __post_init__(self):
        check_size(self)
        if (self.height is None) != (self.width is None):
            raise UserError(
                f"PixelsConfig: height is {self.height} and width is {self.width}; give both, or"
                " neither for images of any size"
            )
        if not 2 <= self.levels <= 256:
            raise UserError(f"PixelsConfig: levels is {self.levels}; it must be 2 to 256")

    @property
    def takes(self) -> dict[str, int | None]:
        """The images that its tokenizer takes; None: of any height and width, grey or RGB."""
        return {
            "height": self.height,
            "width": self.width,
            "channels": self.channels or (None if self.height is None else 1),
        }

    def build(self) -> Pixels:
        """The tokenizer: nothing is to be learned."""
        return Pixels(self)


class Pixels(ImageTokenizer):
    """Image <-> codes (T, 1), T = height x width x channels.

    Off by at most half a level: 255 / (levels - 1) / 2 grey values.
    """

    config_type = PixelsConfig

    def __init__(self, config: PixelsConfig):
        self.config = config
        self._free = config.height is None
        self._channels = config.takes["channels"]
        frames = None if self._free else config.height * config.width * self._channels
        self.signature = Signature(
            "image",
            levels=(config.levels,),
            frames=frames,
            fingerprint=fingerprint("Pixels", asdict(config)),
        )

    def encode(self, signal: np.ndarray) -> Segment:
        """uint8 (Y, X) or (Y, X, 3) -> codes (T, 1) int32.

        Raises UserError on another size, kind or type.
        """
        image = checked_image(signal, self.config.height, self.config.width, self._channels)
        memory_budget.check(
            PIXEL_BYTES * image.size, "image", f"a picture of {image.size:,} values as codes"
        )
        codes = to_levels(image.reshape(-1, 1), self.config.levels)
        return Segment(
            "image", codes=codes, info=dict(zip(("height", "width", "channels"), image.shape))
        )

    def decode(self, segment: Segment) -> np.ndarray:
        """Codes (T, 1) -> uint8 image.

        Without a size: grey (unless channels is 3), the nearest square. Missing pixels are black.
        """
        codes = checked_codes(segment, self.config.levels)
        shape = self._shape(len(codes), segment.info)
        memory_budget.check(
            PIXEL_BYTES * math.prod(shape),
            "image",
            f"a picture of {' x '.join(map(str, shape))} values",
        )
        values, n = np.zeros(math.prod(shape), np.uint8), min(math.prod(shape), len(codes))
        values[:n] = to_grey(codes[:n], self.config.levels)
        return without_grey_axis(values.reshape(shape))

    def _shape(self, n_codes: int, info) -> tuple[int, int, int]:
        """(Y, X, C) of the image that `n_codes` codes make."""
        if not self._free:
            return self.config.height, self.config.width, self._channels
        channels = self._channels or int(info.get("channels", 1))
        if "height" in info and "width" in info:
            return int(info["height"]), int(info["width"]), channels
        side = max(1, round((n_codes / channels) ** 0.5))
        return side, side, channels

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        return [self.encode(image) for image in signals]

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        return [self.decode(segment) for segment in segments]


@dataclass(frozen=True)
class VQPatchesConfig(PatchGrid):
    """Images of one size as learned codes, one per patch; trained by `mmtok.train.tokenizer_fit`.

    height, width, patch  in pixels; the patch divides both; one frame per patch
    channels   1 grey, 3 RGB
    n_codes    size of the codebook; code_size: numbers per code vector
    hidden     channels of the convolutions; blocks: residual blocks in encoder and decoder each
    steps      of training
    """

    height: int = 8
    width: int = 8
    channels: int = 1
    patch: int = 2
    n_codes: int = 64
    code_size: int = 8
    hidden: int = 64
    blocks: int = 1
    steps: int = 1400

    def __post_init__(self):
        check_size(self, patch=1, n_codes=2, code_size=1, hidden=1, blocks=0, steps=1)

    def network(self) -> PatchAutoencoder:
        """A new, untrained network of these sizes."""
        from mmtok.nn.autoencoder import PatchAutoencoder

        return PatchAutoencoder(
            self.channels, self.patch, self.hidden, self.blocks, self.code_size, self.n_codes
        )


class VQPatches(PatchNetwork):
    """Image <-> codes (T, 1), T = patches in raster order.

    Lossy: `fidelity` measures by how much, and also `codebook_use` (the share of codes that occur)
    and `codebook_perplexity`.
    """

    config_type = VQPatchesConfig

    def __init__(self, config: VQPatchesConfig, network: PatchAutoencoder):
        super().__init__(config, network, levels=(config.n_codes,))

    def _frames(self, images: torch.Tensor) -> np.ndarray:
        return self._network.codes(images).flatten(1).numpy().astype(np.int32)[:, :, None]

    def _checked(self, segment: Segment) -> np.ndarray:
        codes = checked_codes(segment, self.config.n_codes)
        if len(codes) != self.signature.frames:
            raise UserError(
                f"image: {len(codes)} codes, this tokenizer needs {self.signature.frames}, one for"
                " each patch"
            )
        return codes

    def _on_grid(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.long().view(-1, *self.config.grid)

    def _figures(self, segments: Sequence[Segment]) -> dict[str, float]:
        import torch

        from mmtok.nn.quantize import book_use, code_counts, perplexity

        counts = code_counts(
            torch.from_numpy(np.concatenate([segment.codes for segment in segments])),
            self.config.n_codes,
        )
        return {"codebook_use": book_use(counts), "codebook_perplexity": perplexity(counts)}
