"""What all tokenizers of images share: what an image is, its grey values as levels, the error of a
round trip; networks of patches.

An image is uint8, (Y, X) grey or (Y, X, 3) RGB. Letters beyond the package's: C image channels, Y,
X pixels, p patch side. torch is imported only where a network is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.tokenizers.base import (
    Batched,
    fingerprint,
    learned,
    load_config,
    with_weights,
    write_config,
    write_learned,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

IMAGES_AT_ONCE = 256  # bounds the memory of a batch
MOST = {
    "blocks": 256,
    "steps": 10**9,
}  # of fields that are sizes; what a network takes is known only once it is laid out
MOST_OF_ALL = 2**16
# what stands for "no error at all" among signal-to-noise ratios: finite, so that it can be written
# as JSON
EXACT_DB = 100.0


def checked_image(
    image: np.ndarray, height: int | None, width: int | None, channels: int | None
) -> np.ndarray:
    """The image as (Y, X, C), C 1 or 3.

    Raises UserError unless it has the wanted size (None: any) and is uint8.
    """
    image = np.asarray(image)
    if (
        image.dtype != np.uint8
        or image.ndim not in (2, 3)
        or (image.ndim == 3 and image.shape[2] not in (1, 3))
    ):
        raise UserError(
            "image: expected uint8 values 0..255 of shape (height, width) or (height, width, 3), "
            f"got {image.dtype} {image.shape}; scale to 0..255 and convert with .astype('uint8')"
        )
    image = image[:, :, None] if image.ndim == 2 else image
    if 0 in image.shape:
        raise UserError(f"image: {image.shape[0]} x {image.shape[1]} has no pixels")
    if image.shape[:2] != (height or image.shape[0], width or image.shape[1]):
        raise UserError(
            f"image: {image.shape[0]} x {image.shape[1]} (height x width), this tokenizer takes"
            f" {height} x {width}; resize it first, e.g. Pillow's Image.resize(({width}, {height}))"
        )
    if image.shape[2] != (channels or image.shape[2]):
        have, want, mode = ("RGB", "grey", "L") if channels == 1 else ("grey", "RGB", "RGB")
        raise UserError(
            f"image: {have}, this tokenizer takes {want}; convert it first, e.g. Pillow's"
            f" Image.convert('{mode}')"
        )
    return image


def without_grey_axis(image: np.ndarray) -> np.ndarray:
    """(Y, X, 1) -> (Y, X); (Y, X, 3) stays."""
    return image[:, :, 0] if image.shape[2] == 1 else image


def to_levels(grey: np.ndarray, n_levels: int) -> np.ndarray:
    """Grey values 0..255 -> int32 levels round(v (n_levels - 1) / 255), halves upwards, in
    integers.
    """
    return (grey.astype(np.int32) * (2 * n_levels - 2) + 255) // 510


def to_grey(levels: np.ndarray, n_levels: int) -> np.ndarray:
    """The inverse of `to_levels` to within half a level: uint8 grey values."""
    top = n_levels - 1
    return ((levels.astype(np.int64) * 510 + top) // (2 * top)).astype(np.uint8)


def image_error(images: Sequence[np.ndarray], again: Sequence[np.ndarray]) -> dict[str, float]:
    """Error over all values of all images: root mean square in grey values, and its peak
    signal-to-noise ratio (peak 255).
    """
    squares = np.concatenate(
        [
            np.square(np.subtract(a, b, dtype=np.float64)).ravel()
            for a, b in zip(images, again, strict=True)
        ]
    )
    mse = float(squares.mean())
    psnr_db = min(EXACT_DB, 10 * np.log10(255.0**2 / mse)) if mse > 0 else EXACT_DB
    return {"psnr_db": float(psnr_db), "rms_error_grey": mse**0.5}


def check_size(config: Any, **least: int) -> None:
    """Raise UserError for what no image has, and for fields below their `least` values; where
    `patch` is one of these, also unless the images are of one size, which it divides.
    """
    name = type(config).__name__
    for field, low in {"height": 1, "width": 1, **least}.items():
        value, most = getattr(config, field), MOST.get(field, MOST_OF_ALL)
        if value is not None and value < low:
            raise UserError(f"{name}: {field} is {value}; it must be at least {low}")
        if value is not None and value > most:
            raise UserError(f"{name}: {field} is {value}; it must be at most {most:,}")
    if config.channels not in (1, 3, None):
        raise UserError(f"{name}: channels is {config.channels}; it must be 1 (grey) or 3 (RGB)")
    if "patch" in least:
        if None in (config.height, config.width, config.channels):
            raise UserError(
                f"{name}: height, width and channels must be given: patches are cut from images of"
                " one size"
            )
        if config.height % config.patch or config.width % config.patch:
            raise UserError(
                f"{name}: a patch of {config.patch} does not divide {config.height} x"
                f" {config.width} pixels"
            )


def to_tensor(images: Sequence[np.ndarray], config: Any, dtype: torch.dtype) -> torch.Tensor:
    """Images of the config's size -> (B, C, Y, X) in -1..1.

    Raises UserError where one has another size, kind or type.
    """
    import torch

    stack = np.stack(
        [checked_image(image, config.height, config.width, config.channels) for image in images]
    )
    return torch.from_numpy(stack).to(dtype).permute(0, 3, 1, 2) / 127.5 - 1


def from_tensor(values: torch.Tensor) -> list[np.ndarray]:
    """The inverse of `to_tensor`: (B, C, Y, X) -> images, whatever lies outside of -1..1 at the
    nearer end.
    """
    import torch

    grey = ((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [without_grey_axis(image) for image in grey.permute(0, 2, 3, 1).contiguous().numpy()]


class PatchGrid:
    """Of a config with `height`, `width` and a `patch` that divides both: what follows from them."""

    modality: ClassVar[str] = "image"

    @property
    def grid(self) -> tuple[int, int]:
        """Patches from top to bottom, and from left to right."""
        return self.height // self.patch, self.width // self.patch

    @property
    def takes(self) -> dict[str, int | None]:
        """The images that its tokenizer takes."""
        return {"height": self.height, "width": self.width, "channels": self.channels}

    @property
    def info(self) -> dict[str, int]:
        """What a segment says of its image."""
        return {"height": self.height, "width": self.width, "channels": self.channels}


class ImageTokenizer(Batched):
    """Image <-> segment.

    A class gives the batch calls; as it stands, its folder holds its config alone.
    """

    config_type: ClassVar[type]

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """Round trip: `psnr_db` and `rms_error_grey` over all values (100 dB stands for exact), and
        what the class adds; {} of none.
        """
        if not len(signals):
            return {}
        segments = self.encode_batch(signals)
        return {**image_error(signals, self.decode_batch(segments)), **self._figures(segments)}

    def _figures(self, segments: Sequence[Segment]) -> dict[str, float]:
        """What a class says of its own frames."""
        return {}

    def save(self, folder: Path) -> None:
        write_config(Path(folder), type(self).__name__, asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(load_config(folder, cls.__name__, cls.config_type))


class PatchNetwork(ImageTokenizer):
    """Image of one size <-> a frame per patch, in raster order, by a trained network.

    A class says what a frame is: `_frames` (B, C, Y, X) -> (B, T, n), `_checked` those of a
    segment, and `_on_grid` how the network wants
    them back. The networks run in float64: frames and pixels then do not depend on how many images
    are done at once.
    """

    def __init__(self, config: PatchGrid, network: nn.Module, **frame: Any):
        """network: as `config.network()` makes it, trained; it is taken over and changed to
        float64. frame: the signature's part.
        """
        self.config = config
        self._network = network.double().eval().requires_grad_(False)
        rows, columns = config.grid
        mark = fingerprint(type(self).__name__, asdict(config), *learned(self._network))
        self.signature = Signature("image", frames=rows * columns, fingerprint=mark, **frame)

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """uint8 images (Y, X) or (Y, X, 3) of the config's size -> segments.

        Raises UserError on anything else.
        """
        import torch

        kind = "codes" if self.signature.levels else "latents"
        segments: list[Segment] = []
        for start in range(0, len(signals), IMAGES_AT_ONCE):
            frames = self._frames(
                to_tensor(signals[start : start + IMAGES_AT_ONCE], self.config, torch.float64)
            )
            segments += [Segment("image", **{kind: row}, info=self.config.info) for row in frames]
        return segments

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments -> uint8 images.

        Raises UserError where one has another number of frames, or what is no frame of this
        tokenizer.
        """
        import torch

        signals: list[np.ndarray] = []
        for start in range(0, len(segments), IMAGES_AT_ONCE):
            frames = np.stack(
                [self._checked(segment) for segment in segments[start : start + IMAGES_AT_ONCE]]
            )
            signals += from_tensor(self._network.images(self._on_grid(torch.from_numpy(frames))))
        return signals

    def _frames(self, images: torch.Tensor) -> np.ndarray:
        raise NotImplementedError

    def _checked(self, segment: Segment) -> np.ndarray:
        raise NotImplementedError

    def _on_grid(self, frames: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        write_learned(Path(folder), type(self).__name__, asdict(self.config), self._network)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open what `save` wrote.

        Raises UserError when the weights are missing, broken or of other sizes.
        """
        config = load_config(folder, cls.__name__, cls.config_type)
        return cls(config, with_weights(folder, config.network))
