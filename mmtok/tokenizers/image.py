"""Images: pixel levels without training, or learned patch codes. An image is uint8, (Y, X) grey or (Y, X, 3) RGB.

Both spend one id per frame, in raster order (left to right, then top to bottom). Colour pixels give three frames each:
red, green, blue; so a colour image needs no head of its own and its likelihood is exact, value by value.
torch is imported only where patch codes are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmtok.files import write_tensors
from mmtok.segment import BadInput, Segment, Signature
from mmtok.tokenizers.base import fingerprint, load_weights, read_config, weights_of, write_config

if TYPE_CHECKING:
    import torch

    from mmtok.nn.conv import PatchAutoencoder

IMAGES_AT_ONCE = 256  # bounds the memory of a batch
EXACT_DB = 100.0  # what stands for "no error at all" among signal-to-noise ratios: finite, so that it can be written as JSON


def checked_image(image: np.ndarray, height: int | None, width: int | None, channels: int | None) -> np.ndarray:
    """The image as (Y, X, C), C 1 or 3. Raises BadInput unless it has the wanted size (None: any) and is uint8."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise BadInput(f"image: expected uint8 values 0..255 of shape (height, width) or (height, width, 3), "
                       f"got {image.dtype} {image.shape}; scale to 0..255 and convert with .astype('uint8')")
    image = image[:, :, None] if image.ndim == 2 else image
    if 0 in image.shape:
        raise BadInput(f"image: {image.shape[0]} x {image.shape[1]} has no pixels")
    if image.shape[:2] != (height or image.shape[0], width or image.shape[1]):
        raise BadInput(f"image: {image.shape[0]} x {image.shape[1]} (height x width), this tokenizer takes {height} x {width}; "
                       f"resize it first, e.g. Pillow's Image.resize(({width}, {height}))")
    if image.shape[2] != (channels or image.shape[2]):
        have, want, mode = ("RGB", "grey", "L") if channels == 1 else ("grey", "RGB", "RGB")
        raise BadInput(f"image: {have}, this tokenizer takes {want}; convert it first, e.g. Pillow's Image.convert('{mode}')")
    return image


def checked_codes(segment: Segment, levels: int) -> np.ndarray:
    """The codes (T,) of an image segment. Raises BadInput when they are not (T, 1) codes in [0, levels)."""
    codes = segment.codes
    if codes is None or codes.shape[1] != 1:
        raise BadInput(f"image: expected codes of shape (T, 1), got {segment.values.shape}")
    if codes.size and not (codes.min() >= 0 and codes.max() < levels):
        raise BadInput(f"image: codes run from {codes.min()} to {codes.max()}, this tokenizer has 0 to {levels - 1}")
    return codes[:, 0]


def without_grey_axis(image: np.ndarray) -> np.ndarray:
    """(Y, X, 1) -> (Y, X); (Y, X, 3) stays."""
    return image[:, :, 0] if image.shape[2] == 1 else image


def image_error(images: Sequence[np.ndarray], again: Sequence[np.ndarray]) -> dict[str, float]:
    """Error over all values of all images: root mean square in grey values, and its peak signal-to-noise ratio (peak 255)."""
    squares = np.concatenate([np.square(np.subtract(a, b, dtype=np.float64)).ravel() for a, b in zip(images, again, strict=True)])
    mse = float(squares.mean())
    psnr_db = min(EXACT_DB, 10 * np.log10(255.0**2 / mse)) if mse > 0 else EXACT_DB
    return {"psnr_db": float(psnr_db), "rms_error_grey": mse**0.5}


def check_size(config: Any, **least: int) -> None:
    """Raise BadInput for what no image has, and for fields below their `least` values; where `patch` is one of these, also unless
    the images are of one size, which it divides."""
    name = type(config).__name__
    for field, low in {"height": 1, "width": 1, **least}.items():
        if getattr(config, field) is not None and getattr(config, field) < low:
            raise BadInput(f"{name}: {field} is {getattr(config, field)}; it must be at least {low}")
    if config.channels not in (1, 3, None):
        raise BadInput(f"{name}: channels is {config.channels}; it must be 1 (grey) or 3 (RGB)")
    if "patch" in least:
        if None in (config.height, config.width, config.channels):
            raise BadInput(f"{name}: height, width and channels must be given: patches are cut from images of one size")
        if config.height % config.patch or config.width % config.patch:
            raise BadInput(f"{name}: a patch of {config.patch} does not divide {config.height} x {config.width} pixels")


@dataclass(frozen=True)
class PixelsConfig:
    """Images as pixel levels: nothing to learn.

    height, width  in pixels; both None: any size, kept in the segment's info
    channels       1 grey, 3 RGB; None: grey where the size is fixed, and as each image comes where it is free
    levels         a value v of 0..255 becomes level round(v (levels - 1) / 255); 256 loses nothing, 17 is what scikit-learn's digits have
    """

    height: int | None = None
    width: int | None = None
    channels: int | None = None
    levels: int = 17
    modality: ClassVar[str] = "image"

    def __post_init__(self):
        check_size(self)
        if (self.height is None) != (self.width is None):
            raise BadInput(f"PixelsConfig: height is {self.height} and width is {self.width}; give both, or neither for images of any size")
        if not 2 <= self.levels <= 256:
            raise BadInput(f"PixelsConfig: levels is {self.levels}; it must be 2 to 256")

    def build(self) -> Pixels:
        """The tokenizer: nothing is to be learned."""
        return Pixels(self)


class Pixels:
    """Image <-> codes (T, 1), T = height x width x channels. Off by at most half a level: 255 / (levels - 1) / 2 grey values."""

    def __init__(self, config: PixelsConfig):
        self.config = config
        self._free = config.height is None
        self._channels = config.channels or (None if self._free else 1)
        frames = None if self._free else config.height * config.width * self._channels
        self.signature = Signature("image", levels=(config.levels,), frames=frames, fingerprint=fingerprint("Pixels", asdict(config)))

    def encode(self, signal: np.ndarray) -> Segment:
        """uint8 (Y, X) or (Y, X, 3) -> codes (T, 1) int32. Raises BadInput on another size, kind or type."""
        image = checked_image(signal, self.config.height, self.config.width, self._channels)
        codes = (image.reshape(-1, 1).astype(np.int32) * (2 * self.config.levels - 2) + 255) // 510  # rounds half up, in integers
        return Segment("image", codes=codes, info=dict(zip(("height", "width", "channels"), image.shape)))

    def decode(self, segment: Segment) -> np.ndarray:
        """Codes (T, 1) -> uint8 image. Without a size: grey (unless channels is 3), the nearest square. Missing pixels are black."""
        codes = checked_codes(segment, self.config.levels)
        shape = self._shape(len(codes), segment.info)
        top = self.config.levels - 1
        values, n = np.zeros(int(np.prod(shape)), np.uint8), min(int(np.prod(shape)), len(codes))
        values[:n] = (codes[:n].astype(np.int64) * 510 + top) // (2 * top)
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

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """Round trip: `psnr_db` and `rms_error_grey` over all values (100 dB stands for exact)."""
        return image_error(signals, self.decode_batch(self.encode_batch(signals))) if len(signals) else {}

    def save(self, folder: Path) -> None:
        write_config(Path(folder), "Pixels", asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> Pixels:
        return cls(PixelsConfig(**read_config(Path(folder), "Pixels")))


@dataclass(frozen=True)
class VQPatchesConfig:
    """Images of one size as learned codes, one per patch; trained by `mmtok.train.fit_tokenizer`.

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
    modality: ClassVar[str] = "image"

    def __post_init__(self):
        check_size(self, patch=1, n_codes=2, code_size=1, hidden=1, blocks=0, steps=1)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches from top to bottom, and from left to right."""
        return self.height // self.patch, self.width // self.patch

    def network(self) -> PatchAutoencoder:
        """A new, untrained network of these sizes."""
        from mmtok.nn.conv import PatchAutoencoder

        return PatchAutoencoder(self.channels, self.patch, self.hidden, self.blocks, self.code_size, self.n_codes)


def to_tensor(images: Sequence[np.ndarray], config: Any, dtype: torch.dtype) -> torch.Tensor:
    """Images of the config's size -> (B, C, Y, X) in -1..1. Raises BadInput where one has another size, kind or type."""
    import torch

    stack = np.stack([checked_image(image, config.height, config.width, config.channels) for image in images])
    return torch.from_numpy(stack).to(dtype).permute(0, 3, 1, 2) / 127.5 - 1


def from_tensor(values: torch.Tensor) -> list[np.ndarray]:
    """The inverse of `to_tensor`: (B, C, Y, X) -> images, whatever lies outside of -1..1 at the nearer end."""
    import torch

    grey = ((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [without_grey_axis(image) for image in grey.permute(0, 2, 3, 1).contiguous().numpy()]


class VQPatches:
    """Image <-> codes (T, 1), T = patches in raster order. Lossy: `fidelity` measures by how much.

    The networks run in float64: codes and pixels then do not depend on how many images are done at once.
    """

    def __init__(self, config: VQPatchesConfig, network: PatchAutoencoder):
        """network: as `config.network()` makes it, trained; it is taken over and changed to float64."""
        self.config = config
        self._network = network.double().eval().requires_grad_(False)
        learned = [value.numpy().tobytes() for _, value in sorted(weights_of(self._network).items())]
        rows, columns = config.grid
        self.signature = Signature("image", levels=(config.n_codes,), frames=rows * columns,
                                   fingerprint=fingerprint("VQPatches", asdict(config), *learned))

    def encode(self, signal: np.ndarray) -> Segment:
        """uint8 (Y, X) or (Y, X, 3) of the config's size -> codes (T, 1) int32. Raises BadInput on anything else."""
        return self.encode_batch([signal])[0]

    def decode(self, segment: Segment) -> np.ndarray:
        """Codes (T, 1) -> uint8 image. Raises BadInput when T is not the grid's."""
        return self.decode_batch([segment])[0]

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """Images -> segments, as `encode`."""
        import torch

        info = {"height": self.config.height, "width": self.config.width, "channels": self.config.channels}
        segments: list[Segment] = []
        for start in range(0, len(signals), IMAGES_AT_ONCE):
            images = to_tensor(signals[start:start + IMAGES_AT_ONCE], self.config, torch.float64)
            codes = self._network.codes(images).flatten(1).numpy().astype(np.int32)
            segments += [Segment("image", codes=row[:, None], info=info) for row in codes]
        return segments

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments -> images, as `decode`."""
        import torch

        rows, columns = self.config.grid
        signals: list[np.ndarray] = []
        for start in range(0, len(segments), IMAGES_AT_ONCE):
            codes = np.stack([self._grid_codes(segment) for segment in segments[start:start + IMAGES_AT_ONCE]])
            signals += from_tensor(self._network.images(torch.from_numpy(codes).long().view(-1, rows, columns)))
        return signals

    def _grid_codes(self, segment: Segment) -> np.ndarray:
        codes = checked_codes(segment, self.config.n_codes)
        if len(codes) != self.signature.frames:
            raise BadInput(f"image: {len(codes)} codes, this tokenizer needs {self.signature.frames}, one for each patch")
        return codes

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """Round trip: `psnr_db`, `rms_error_grey` over all values; `codebook_use` (share of codes that occur), `codebook_perplexity`."""
        import torch

        from mmtok.nn.quantize import book_use, code_counts, perplexity

        if not len(signals):
            return {}
        segments = self.encode_batch(signals)
        counts = code_counts(torch.from_numpy(np.concatenate([segment.codes for segment in segments])), self.config.n_codes)
        book = {"codebook_use": book_use(counts), "codebook_perplexity": perplexity(counts)}
        return {**image_error(signals, self.decode_batch(segments)), **book}

    def save(self, folder: Path) -> None:
        write_tensors(Path(folder) / "weights.safetensors", weights_of(self._network))
        write_config(Path(folder), "VQPatches", asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> VQPatches:
        """Open what `save` wrote. Raises BadInput when the weights are missing, broken or of other sizes."""
        config = VQPatchesConfig(**read_config(Path(folder), "VQPatches"))
        network = config.network()
        load_weights(folder, network)
        return cls(config, network)
