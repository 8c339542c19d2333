"""Images as the codes or latents of a pretrained tokenizer: LlamaGen's, Janus's, Emu3's, a KL one.

Its frames are patches, row by row. The network runs in float32, one picture at a time, so that
batches equal single calls.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.io.files import write_text
from mmtok.io.serialize import read_json_as, to_plain
from mmtok.nn.quantize import codebook_figures
from mmtok.tokenizers.base import (
    checked_codes,
    checked_latents,
    fingerprint,
    learned,
    load_config,
    spreads,
    with_weights,
    write_learned,
)
from mmtok.tokenizers.image_models import ImageModel, VQGANModel, read_model
from mmtok.tokenizers.patches import ImageTokenizer, PatchConfig, from_tensor, to_tensor
from mmtok.tokenizers.pretrained import checkpoint_folder

MODEL = "model.json"  # in a tokenizer's folder: which network its weights are of
SIDE = 256


@dataclass(frozen=True)
class ImageCheckpointConfig(PatchConfig):
    """A pretrained image tokenizer, used at one size of pictures in colours.

    Attributes:
        path: a folder, or a name on the Hugging Face hub, with the weights of LlamaGen's, Janus's
            or Emu3's tokenizer or of an AutoencoderKL of `diffusers`; a whole model or pipeline
            with one inside will do. A run keeps a copy.
        height: in pixels, a multiple of the tokenizer's stride.
        width: in pixels, likewise.
    """

    channels: ClassVar[int] = 3  # type: ignore[misc]

    path: str
    height: int = SIDE
    width: int = SIDE

    @property
    def model(self) -> ImageModel:
        """Which network it is; one of the hub is fetched.

        Raises UserError for what is no such tokenizer, and where its stride does not divide the
        size of the pictures.
        """
        model = _read(self.path)
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < model.stride or value % model.stride:
                raise UserError(
                    f"{self.path}: {name} is {value}; this tokenizer takes multiples of its stride,"
                    f" {model.stride} pixels"
                )
        return model

    @property
    def patch(self) -> int:  # type: ignore[override]
        """The stride."""
        return self.model.stride

    def signature(self) -> Signature | None:
        """Without the fingerprint, which is of the weights; None for one that is on the hub."""
        if not Path(self.path).is_dir():
            return None
        return self.signature_of(self.model)

    def signature_of(self, model: ImageModel, mark: str = "") -> Signature:
        """The signature with this model; mark: the fingerprint."""
        frames = self.height // model.stride * (self.width // model.stride)
        if model.n_codes:
            return Signature("image", (model.n_codes,), frames=frames, fingerprint=mark)
        assert isinstance(model, VQGANModel)
        size = model.sizes.code_size
        return Signature("image", latent_size=size, frames=frames, fingerprint=mark)

    def check(self) -> None:
        """Raise UserError for what is no such checkpoint."""
        _ = self.model

    def build(self) -> ImageCheckpoint:
        """Open the checkpoint. Raises UserError as `read_model` does."""
        _ = self.model
        folder = checkpoint_folder(self.path)
        model, weights = read_model(folder)
        network = model.make()
        found = network.load_state_dict(weights, strict=False)
        unknown = [*found.missing_keys, *found.unexpected_keys]
        if unknown:
            raise UserError(
                f"{folder}: {len(unknown)} weights are missing, or of another tokenizer, such as"
                f" {unknown[0]}; take the whole checkpoint"
            )
        return ImageCheckpoint(self, model, network)

    def load(self, folder: Path) -> ImageCheckpoint:
        """Open the tokenizer that was saved in `folder`."""
        return ImageCheckpoint.load(folder)


@lru_cache(maxsize=8)
def _read(path: str) -> ImageModel:
    """The model at a path, which every prepared picture asks for."""
    return read_model(checkpoint_folder(path), weights=False)[0]


class ImageCheckpoint(ImageTokenizer):
    """Image of one size <-> codes (T, 1) or latents (T, D), by a pretrained network. Lossy."""

    config_type = ImageCheckpointConfig

    def __init__(self, config: ImageCheckpointConfig, model: ImageModel, network: Any):
        self.config = config
        self.model = model
        self._network: Any = network.float().eval().requires_grad_(False)
        about = {"height": config.height, "width": config.width, "model": to_plain(model)}
        mark = fingerprint("ImageCheckpoint", about, *learned(self._network))
        self.signature = config.signature_of(model, mark)
        stride = model.stride
        self._grid = (config.height // stride, config.width // stride)

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """uint8 images (Y, X, 3) of the config's size -> segments.

        Raises UserError on anything else.
        """
        stacks = [to_tensor([signal], self.config, torch.float32) for signal in signals]
        return [self._encode(stack) for stack in stacks]

    def _encode(self, image: Tensor) -> Segment:
        info = {"height": self.config.height, "width": self.config.width, "channels": 3}
        with torch.inference_mode():
            if self.model.n_codes:
                codes = self._network.codes(image).reshape(-1, 1).numpy()
                return Segment("image", codes=codes.astype(np.int32), info=info)
            assert isinstance(self.model, VQGANModel)
            means = self._network.encoded(image).flatten(0, 2)
            latents = (means - self.model.shift) * self.model.scale
            return Segment("image", latents=latents.numpy(), info=info)

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments -> uint8 images.

        Raises UserError for another number of frames, or frames not of this tokenizer.
        """
        frames = [self._checked(segment) for segment in segments]
        return [self._decode(torch.from_numpy(np.ascontiguousarray(f))) for f in frames]

    def _checked(self, segment: Segment) -> np.ndarray:
        if not self.model.n_codes:
            return checked_latents(segment, self.signature)
        codes = checked_codes(segment, self.signature)
        if len(codes) != self.signature.frames:
            raise UserError(
                f"image: {len(codes)} codes, this tokenizer needs {self.signature.frames}, one for"
                " each patch"
            )
        return codes

    def _decode(self, frames: Tensor) -> np.ndarray:
        with torch.inference_mode():
            if self.model.n_codes:
                image = self._network.images(frames.long().view(1, *self._grid))
            else:
                assert isinstance(self.model, VQGANModel)
                vectors = frames.float() / self.model.scale + self.model.shift
                image = self._network.decoded(vectors.view(1, *self._grid, -1))
        return from_tensor(image)[0]

    def _figures(self, segments: Sequence[Segment]) -> dict[str, float]:
        if not self.model.n_codes:
            return spreads(segments)
        codes = torch.from_numpy(np.concatenate([segment.values for segment in segments]))
        use, perplexity = codebook_figures(codes, self.signature.levels)
        return {"codebook_use": use, "codebook_perplexity": perplexity}

    def save(self, folder: Path) -> None:
        """Write the config, which network it is, and the weights."""
        folder = Path(folder)
        write_text(folder / MODEL, json.dumps(to_plain(self.model), indent=2) + "\n")
        write_learned(folder, "ImageCheckpoint", asdict(self.config), self._network)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open what `save` wrote.

        Raises UserError when a file is missing or broken.
        """
        folder = Path(folder)
        config = load_config(folder, "ImageCheckpoint", ImageCheckpointConfig)
        try:
            model = read_json_as(folder / MODEL, ImageModel)
        except OSError:
            raise UserError(f"{folder} has no {MODEL}: fit the tokenizer again") from None
        return cls(config, model, with_weights(folder, model.make))


def opened_checkpoint(folder: Path) -> ImageCheckpoint:
    """The tokenizer of a published one's own folder, for pictures of 256 x 256."""
    return ImageCheckpointConfig(str(folder)).build()
