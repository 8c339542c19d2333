"""What the tokenizers of images share: checks, grey values as levels, round-trip errors, patches.

An image is uint8, (Y, X) grey or (Y, X, 3) RGB. Letters beyond the package's: C image channels, Y,
X pixels, p patch side. torch is imported only where a network is used.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from mmtok.core.segment import Segment, Signature
from mmtok.core.units import psnr_db
from mmtok.errors import UserError
from mmtok.io.serialize import to_plain
from mmtok.tokenizers.autoencoders import Autoencoder
from mmtok.tokenizers.base import (
    BatchTokenizer,
    TokenizerConfig,
    fingerprint,
    learned,
    load_config,
    with_weights,
    write_learned,
)
from mmtok.tokenizers.image_losses import ImageLosses

if TYPE_CHECKING:
    import torch
    from torch import nn

IMAGES_AT_ONCE = 256  # bounds the memory of a batch
# A network takes so many pixels at a time, of at most so many images, and at least one image. More
# are no faster on a processor.
BATCH_PIXELS = 2**15
BATCH_IMAGES = 32
# The largest values of a config's fields. Those that are sizes are bounded so loosely because what
# a network takes is known only once it is made.
MOST = {"steps": 10**9}
MOST_OF_OTHERS = 2**16


def checked_image(
    image: np.ndarray, height: int | None, width: int | None, channels: int | None
) -> np.ndarray:
    """The image as (Y, X, C), C 1 or 3.

    Raises UserError unless it has the wanted size (None: any) and is uint8.
    """
    image = np.asarray(image)
    is_grey = image.ndim == 2
    is_rgb_or_grey = image.ndim == 3 and image.shape[2] in (1, 3)
    if image.dtype != np.uint8 or not (is_grey or is_rgb_or_grey):
        raise UserError(
            "image: expected uint8 values 0..255 of shape (height, width) or (height, width, 3), "
            f"got {image.dtype} {image.shape}; scale to 0..255 and convert with .astype('uint8')"
        )
    if is_grey:
        image = image[:, :, None]
    if 0 in image.shape:
        raise UserError(f"image: {image.shape[0]} x {image.shape[1]} has no pixels")
    if image.shape[:2] != (height or image.shape[0], width or image.shape[1]):
        raise UserError(
            f"image: {image.shape[0]} x {image.shape[1]} (height x width), this tokenizer takes"
            f" {height} x {width}; resize it first, e.g. Pillow's Image.resize(({width}, {height}))"
        )
    if channels == 1 and image.shape[2] == 3:
        raise UserError(
            "image: RGB, this tokenizer takes grey; convert it first, e.g. Pillow's"
            " Image.convert('L')"
        )
    if channels == 3 and image.shape[2] == 1:
        raise UserError(
            "image: grey, this tokenizer takes RGB; convert it first, e.g. Pillow's"
            " Image.convert('RGB')"
        )
    return image


def without_grey_axis(image: np.ndarray) -> np.ndarray:
    """(Y, X, 1) -> (Y, X); (Y, X, 3) stays."""
    if image.shape[2] == 1:
        return image[:, :, 0]
    return image


def levels_fingerprint(kind: str, config: Any) -> str:
    """The fingerprint of a tokenizer of pixel levels, which counts its `n_levels` as `levels`.

    That is the name of the codebook sizes in a signature.
    """
    meaning = asdict(config)
    meaning["levels"] = meaning.pop("n_levels")
    return fingerprint(kind, meaning)


def to_levels(grey: np.ndarray, n_levels: int) -> np.ndarray:
    """Grey values 0..255 -> levels round(v (n_levels - 1) / 255), int32.

    Integer arithmetic; halves are rounded up.
    """
    return (grey.astype(np.int32) * (2 * n_levels - 2) + 255) // 510


def to_grey(levels: np.ndarray, n_levels: int) -> np.ndarray:
    """The inverse of `to_levels` to within half a level: uint8 grey values."""
    top = n_levels - 1
    return ((levels.astype(np.int64) * 510 + top) // (2 * top)).astype(np.uint8)


def image_error(images: Sequence[np.ndarray], again: Sequence[np.ndarray]) -> dict[str, float]:
    """The error of decoded images over all values of all images.

    rms_error_grey is its root mean square, in grey values; psnr_db as of `psnr_db`.
    """
    squares = [
        np.square(np.subtract(a, b, dtype=np.float64)).ravel()
        for a, b in zip(images, again, strict=True)
    ]
    mse = float(np.concatenate(squares).mean())
    return {"psnr_db": psnr_db(mse), "rms_error_grey": mse**0.5}


def check_size(config: Any, **least: int) -> None:
    """Raise UserError for sizes that no image has, and for fields below their `least` values.

    Where `patch` is among these: also unless the images are of one size, which the patch divides.
    """
    name = type(config).__name__
    for field, low in {"height": 1, "width": 1, **least}.items():
        value = getattr(config, field)
        most = MOST.get(field, MOST_OF_OTHERS)
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
    """The inverse of `to_tensor`: (B, C, Y, X) -> images; values outside -1..1 are clipped."""
    import torch

    grey = ((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [without_grey_axis(image) for image in grey.permute(0, 2, 3, 1).contiguous().numpy()]


class ImageConfig(TokenizerConfig):
    """What the configs of image tokenizers share."""

    modality: ClassVar[str] = "image"

    height: int | None
    width: int | None
    channels: int | None

    @property
    def takes(self) -> dict[str, int | None]:
        """The images that the tokenizer takes."""
        return {"height": self.height, "width": self.width, "channels": self.channels}

    def rate_texts(self, signature: Signature, fidelity: Mapping[str, float]) -> list[str]:
        """Frames and bits of an image of fixed size, else bits of a value."""
        bits = signature.bits_per_frame
        if not (signature.frames and self.height and self.width):
            return [f"{bits:.4g} bits a value of a pixel"]
        texts = [f"{signature.frames} {self._frame_name()} an image"]
        if bits:
            total = bits * signature.frames
            texts.append(f"{total:.4g} bits an image")
            texts.append(f"{total / (self.height * self.width):.4g} bits a pixel")
        return texts

    def _frame_name(self) -> str:
        """What a frame is, in the plural."""
        return "values"


class PatchConfig(ImageConfig):
    """The config of images of one size that are cut into square patches, one frame each."""

    height: int
    width: int
    channels: int
    patch: int

    @property
    def grid(self) -> tuple[int, int]:
        """Patches from top to bottom, and from left to right."""
        return self.height // self.patch, self.width // self.patch

    @property
    def n_patches(self) -> int:
        """Frames of an image."""
        rows, columns = self.grid
        return rows * columns

    @property
    def info(self) -> dict[str, int]:
        """What a segment says of its image."""
        return {"height": self.height, "width": self.width, "channels": self.channels}

    def _frame_name(self) -> str:
        return "patches"


class NetworkConfig(PatchConfig):
    """The config of a `PatchNetwork`, which mmtok.train.tokenizer_fit trains."""

    learns: ClassVar[bool] = True

    steps: int  # of training
    autoencoder: Autoencoder
    losses: ImageLosses

    @abstractmethod
    def network(self) -> Any:
        """A new, untrained network of these sizes."""


def _plain(config: NetworkConfig) -> dict[str, Any]:
    """Its fields as JSON values, each choice with its kind."""
    plain: dict[str, Any] = to_plain(config)
    del plain["kind"]
    return plain


class ImageTokenizer(BatchTokenizer):
    """Image <-> segment."""

    has_pictures = True

    def pictures(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """The images."""
        return self.decode_batch(segments)

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """`image_error` of the round trip, and the class's own figures; {} of no images."""
        if not len(signals):
            return {}
        segments = self.encode_batch(signals)
        return {**image_error(signals, self.decode_batch(segments)), **self._figures(segments)}

    def _figures(self, segments: Sequence[Segment]) -> dict[str, float]:
        """Figures of a class's own frames."""
        return {}


def in_batches(
    function: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor, n: int
) -> torch.Tensor:
    """A function of rows (N, ...) -> (N, ...), always of n rows at a time.

    What is missing of the last n is filled with zeros. Batches of other sizes are computed by other
    kernels, which add in another order, so that the last bits would depend on N.
    """
    import torch

    found = []
    for some in values.split(n):
        filled = some.new_zeros(n, *some.shape[1:])
        filled[: len(some)] = some  # always a copy: other layouts in memory have other kernels too
        found.append(function(filled)[: len(some)])
    return torch.cat(found)


class PatchNetwork(ImageTokenizer):
    """Image of one size <-> a frame per patch, row by row, by a trained network.

    Frames and pixels do not depend on how many images are done at once: the network runs in batches
    of a size that the size of the images decides (`in_batches`).
    """

    def __init__(self, config: Any, network: nn.Module, **frame: Any):
        """Take over a trained network.

        Args:
            config: a NetworkConfig.
            network: as `config.network()` makes it.
            frame: what the signature says of a frame: `levels` or `latent_size`.
        """
        self.config = config
        self._network: Any = self._typed(network).eval().requires_grad_(False)
        mark = fingerprint(type(self).__name__, _plain(config), *learned(self._network))
        self.signature = Signature("image", frames=config.n_patches, fingerprint=mark, **frame)

    def _typed(self, network: nn.Module) -> nn.Module:
        """The network with the numbers that it computes with: float32."""
        return network.float()

    def _run(self, function: Callable, values: torch.Tensor, n_pixels: int) -> torch.Tensor:
        """A function of the network, of values (N, ...) of images of so many pixels."""
        n = min(BATCH_IMAGES, max(1, BATCH_PIXELS // n_pixels))
        return in_batches(function, values, n)

    @property
    def _n_pixels(self) -> int:
        """Of an image of the config's size."""
        n: int = self.config.height * self.config.width
        return n

    @abstractmethod
    def _encode_frames(self, images: torch.Tensor) -> np.ndarray:
        """(B, C, Y, X) -> frames (B, T, n)."""

    @abstractmethod
    def _checked_frames(self, segment: Segment) -> np.ndarray:
        """The frames of a segment. Raises UserError when they are not of this tokenizer."""

    @abstractmethod
    def _on_grid(self, frames: torch.Tensor) -> torch.Tensor:
        """Checked frames of B segments, as the network's decoder takes them."""

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """uint8 images (Y, X) or (Y, X, 3) of the config's size -> segments.

        Raises UserError on anything else.
        """
        import torch

        segments: list[Segment] = []
        for start in range(0, len(signals), IMAGES_AT_ONCE):
            some = signals[start : start + IMAGES_AT_ONCE]
            images = to_tensor(some, self.config, torch.float32)
            for frames in self._encode_frames(images):
                if self.signature.levels:
                    segments.append(Segment("image", codes=frames, info=self.config.info))
                else:
                    segments.append(Segment("image", latents=frames, info=self.config.info))
        return segments

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments -> uint8 images.

        Raises UserError for another number of frames, or frames not of this tokenizer.
        """
        import torch

        signals: list[np.ndarray] = []
        for start in range(0, len(segments), IMAGES_AT_ONCE):
            some = segments[start : start + IMAGES_AT_ONCE]
            frames = np.stack([self._checked_frames(segment) for segment in some])
            grid = self._on_grid(torch.from_numpy(frames))
            signals += from_tensor(self._run(self._network.images, grid, self._n_pixels))
        return signals

    def save(self, folder: Path) -> None:
        """Write the config and the weights."""
        write_learned(Path(folder), type(self).__name__, _plain(self.config), self._network)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open what `save` wrote.

        Raises UserError when the weights are missing, broken or of other sizes.
        """
        config: Any = load_config(folder, cls.__name__, cls.config_type)
        return cls(config, with_weights(folder, config.network))
