"""Images as latents, which diffusion heads draw: pixels on an axis of numbers, without training, or a learned autoencoder's.

A frame is a patch of the image, frames follow each other in raster order. An image is uint8, (Y, X) grey or (Y, X, 3) RGB.
Letters beyond the package's: C image channels, Y, X pixels, p patch side, so an image has T = (Y/p)(X/p) frames.
torch is imported only where a network is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mmtok.files import write_tensors
from mmtok.segment import BadInput, Segment, Signature
from mmtok.tokenizers.base import checked_latents, fingerprint, load_weights, read_config, weights_of, write_config
from mmtok.tokenizers.image import IMAGES_AT_ONCE, check_size, checked_image, from_tensor, image_error, to_tensor, without_grey_axis

if TYPE_CHECKING:
    from mmtok.nn.kl import KLAutoencoder


@dataclass(frozen=True)
class PixelLatentsConfig:
    """Images of one size as pixels on the axis from -1 to 1: nothing to learn.

    height, width, patch  in pixels; the patch divides both; a frame has patch x patch x channels latents
    channels              1 grey, 3 RGB
    levels                as of `PixelsConfig`: 256 loses nothing, 17 is what scikit-learn's digits have
    """

    height: int = 8
    width: int = 8
    channels: int = 1
    levels: int = 17
    patch: int = 2
    modality: ClassVar[str] = "image"

    def __post_init__(self):
        check_size(self, patch=1, levels=2)
        if self.levels > 256:
            raise BadInput(f"PixelLatentsConfig: levels is {self.levels}; it must be 2 to 256")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches from top to bottom, and from left to right."""
        return self.height // self.patch, self.width // self.patch

    def build(self) -> PixelLatents:
        """The tokenizer: nothing is to be learned."""
        return PixelLatents(self)


class PixelLatents:
    """Image <-> latents (T, C p p): level k stands at the centre of the k-th of `levels` even cells of the axis.

    Off by at most half a level: 255 / (levels - 1) / 2 grey values. Within a frame, the patch of one image channel follows that of
    another, each row by row, as torch's pixel_unshuffle lays them out.
    """

    def __init__(self, config: PixelLatentsConfig):
        self.config = config
        rows, columns = config.grid
        self.signature = Signature("image", latent_size=config.channels * config.patch**2, frames=rows * columns, cells=config.levels,
                                   fingerprint=fingerprint("PixelLatents", asdict(config)))

    def encode(self, signal: np.ndarray) -> Segment:
        """uint8 (Y, X) or (Y, X, 3) of the config's size -> latents (T, D) float32. Raises BadInput on anything else."""
        return self.encode_batch([signal])[0]

    def decode(self, segment: Segment) -> np.ndarray:
        """Latents (T, D), each taken as the nearest level -> uint8 image. Raises BadInput on another shape, and on NaN."""
        return self.decode_batch([segment])[0]

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """Images -> segments, as `encode`."""
        c = self.config
        info = {"height": c.height, "width": c.width, "channels": c.channels}
        segments = []
        for signal in signals:
            image = checked_image(signal, c.height, c.width, c.channels)
            levels = (image.astype(np.int64) * (2 * c.levels - 2) + 255) // 510  # as Pixels: rounds half up, in integers
            patches = levels.reshape(c.grid[0], c.patch, c.grid[1], c.patch, c.channels).transpose(0, 2, 4, 1, 3)
            latents = (2 * patches + 1) / c.levels - 1
            segments.append(Segment("image", latents=latents.reshape(self.signature.frames, -1).astype(np.float32), info=info))
        return segments

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments -> images, as `decode`."""
        c, top = self.config, self.config.levels - 1
        signals = []
        for segment in segments:
            latents = checked_latents(segment, self.signature.latent_size, self.signature.frames).astype(np.float64)
            levels = np.floor((latents.clip(-1, 1) + 1) / 2 * c.levels).clip(0, top).astype(np.int64)
            patches = levels.reshape(*c.grid, c.channels, c.patch, c.patch).transpose(0, 3, 1, 4, 2)
            image = (patches.reshape(c.height, c.width, c.channels) * 510 + top) // (2 * top)
            signals.append(without_grey_axis(image.astype(np.uint8)))
        return signals

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """Round trip: `psnr_db` and `rms_error_grey` over all values (100 dB stands for exact)."""
        return image_error(signals, self.decode_batch(self.encode_batch(signals))) if len(signals) else {}

    def save(self, folder: Path) -> None:
        write_config(Path(folder), "PixelLatents", asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> PixelLatents:
        return cls(PixelLatentsConfig(**read_config(Path(folder), "PixelLatents")))


@dataclass(frozen=True)
class KLPatchesConfig:
    """Images of one size as the latents of a KL autoencoder, one frame per patch; trained by `mmtok.train.fit_tokenizer`.

    height, width, patch  in pixels; the patch divides both
    channels     1 grey, 3 RGB
    latent_size  numbers per patch
    hidden       channels of the convolutions; blocks: residual blocks in encoder and decoder each
    steps        of training
    kl_weight    nats of KL per pixel value, beside the mean squared error of values in -1..1: 2 s^2 stands for a decoder that is off by s
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
    modality: ClassVar[str] = "image"

    def __post_init__(self):
        check_size(self, patch=1, latent_size=1, hidden=1, blocks=0, steps=1, kl_weight=0)
        if not math.isfinite(self.kl_weight):
            raise BadInput(f"KLPatchesConfig: kl_weight is {self.kl_weight}; it must be a finite number, at least 0")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches from top to bottom, and from left to right."""
        return self.height // self.patch, self.width // self.patch

    def network(self) -> KLAutoencoder:
        """A new, untrained network of these sizes."""
        from mmtok.nn.kl import KLAutoencoder

        return KLAutoencoder(self.channels, self.patch, self.hidden, self.blocks, self.latent_size)


class KLPatches:
    """Image <-> latents (T, D), each of the D with mean 0 and variance 1 over the training set. Lossy: `fidelity` measures by how much.

    An image's latents are the means of what the encoder says of it, so they are always the same. The networks run in float64: latents
    and pixels then do not depend on how many images are done at once.
    """

    def __init__(self, config: KLPatchesConfig, network: KLAutoencoder):
        """network: as `config.network()` makes it, trained, its constants set; it is taken over and changed to float64."""
        self.config = config
        self._network = network.double().eval().requires_grad_(False)
        learned = [value.numpy().tobytes() for _, value in sorted(weights_of(self._network).items())]
        rows, columns = config.grid
        self.signature = Signature("image", latent_size=config.latent_size, frames=rows * columns,
                                   fingerprint=fingerprint("KLPatches", asdict(config), *learned))

    def encode(self, signal: np.ndarray) -> Segment:
        """uint8 (Y, X) or (Y, X, 3) of the config's size -> latents (T, D) float32. Raises BadInput on anything else."""
        return self.encode_batch([signal])[0]

    def decode(self, segment: Segment) -> np.ndarray:
        """Latents (T, D) -> uint8 image. Raises BadInput on another shape, and on NaN."""
        return self.decode_batch([segment])[0]

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """Images -> segments, as `encode`."""
        import torch

        info = {"height": self.config.height, "width": self.config.width, "channels": self.config.channels}
        segments: list[Segment] = []
        for start in range(0, len(signals), IMAGES_AT_ONCE):
            images = to_tensor(signals[start:start + IMAGES_AT_ONCE], self.config, torch.float64)
            latents = self._network.latents(images).flatten(1, 2).float().numpy()
            segments += [Segment("image", latents=row, info=info) for row in latents]
        return segments

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments -> images, as `decode`."""
        import torch

        frames, size = self.signature.frames, self.config.latent_size
        signals: list[np.ndarray] = []
        for start in range(0, len(segments), IMAGES_AT_ONCE):
            latents = np.stack([checked_latents(segment, size, frames) for segment in segments[start:start + IMAGES_AT_ONCE]])
            signals += from_tensor(self._network.images(torch.from_numpy(latents).double().unflatten(1, self.config.grid)))
        return signals

    def fidelity(self, signals: Sequence[np.ndarray]) -> dict[str, float]:
        """Round trip: `psnr_db`, `rms_error_grey` over all values; `spread_least` and `spread_most`: of the D latents, the standard
        deviations of the least and the most spread one, which are 1 over the training set."""
        if not len(signals):
            return {}
        segments = self.encode_batch(signals)
        spread = np.concatenate([segment.latents for segment in segments]).std(0, dtype=np.float64)
        error = image_error(signals, self.decode_batch(segments))
        return {**error, "spread_least": float(spread.min()), "spread_most": float(spread.max())}

    def save(self, folder: Path) -> None:
        write_tensors(Path(folder) / "weights.safetensors", weights_of(self._network))
        write_config(Path(folder), "KLPatches", asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> KLPatches:
        """Open what `save` wrote. Raises BadInput when the weights are missing, broken or of other sizes."""
        config = KLPatchesConfig(**read_config(Path(folder), "KLPatches"))
        network = config.network()
        load_weights(folder, network)
        return cls(config, network)
