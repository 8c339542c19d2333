"""Pictures of any size as learned codes of patches, in rows that are each closed by a row mark.

torch is imported only where a network is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtok.core.rows import in_rows, of_rows
from mmtok.core.segment import Segment, Signature
from mmtok.errors import UserError
from mmtok.io import memory_budget
from mmtok.tokenizers.base import checked_codes
from mmtok.tokenizers.images import VQPatches, VQPatchesConfig
from mmtok.tokenizers.patches import checked_image, from_tensor, without_grey_axis

if TYPE_CHECKING:
    from mmtok.nn.autoencoder import PatchAutoencoder

PIXELS_AT_ONCE = 2**18  # bounds the memory of a batch
PIXEL_BYTES = 4096  # of memory per pixel, in either direction: the networks' channels in float64


@dataclass(frozen=True)
class AnySizePatchesConfig(VQPatchesConfig):
    """Pictures of any size as learned codes of patches.

    A picture whose sides the patch does not divide is continued by its last row and column, which
    decoding cuts off again.

    Attributes:
        height: in pixels, of the tiles that the network learns from.
        width: of these tiles.
        patch: its side in pixels, and the least side of a picture; one frame per patch, and one
            per row of patches.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.quantizer.levels) != 1:
            raise UserError(
                f"AnySizePatchesConfig: quantizer is {type(self.quantizer).__name__}, of"
                f" {len(self.quantizer.levels)} codes a patch; take one of a single code (VQ, FSQ,"
                " LFQ)"
            )

    @property
    def takes(self) -> dict[str, int | None]:
        """Pictures of any size of at least a patch."""
        return {"height": None, "width": None, "channels": self.channels, "least_side": self.patch}

    def signature(self) -> Signature:
        """Without the fingerprint, which is of the weights."""
        return Signature("image", self.quantizer.levels, rows=True)

    def rate_texts(self, signature: Signature, fidelity: Mapping[str, float]) -> list[str]:
        """Bits of a patch and of a pixel, without the row marks."""
        bits = signature.bits_per_frame
        return [
            f"a code per {self.patch} x {self.patch} pixels and one per row of them",
            f"{bits / self.patch**2:.4g} bits a pixel",
        ]

    def trained(self, network: PatchAutoencoder) -> AnySizePatches:
        """The tokenizer of a trained network."""
        return AnySizePatches(self, network)

    def load(self, folder: Path) -> AnySizePatches:
        """Open the tokenizer that was saved in `folder`."""
        return AnySizePatches.load(folder)


class AnySizePatches(VQPatches):
    """Picture of any size <-> codes (T, 1), T = rows x (columns + 1) of patches. Lossy."""

    config_type = AnySizePatchesConfig
    fewer_frames = (
        "one for each patch and one for each row of them: smaller pictures make fewer"
        " (--prepare max_pixels=N, or preparation.image.max_pixels of a recipe)"
    )

    def __init__(self, config: AnySizePatchesConfig, network: PatchAutoencoder):
        super().__init__(config, network)
        self.signature = Signature(
            "image", config.quantizer.levels, fingerprint=self.signature.fingerprint, rows=True
        )

    @property
    def _mark(self) -> int:
        return self.signature.levels[0]

    def encode_batch(self, signals: Sequence[np.ndarray]) -> list[Segment]:
        """uint8 pictures (Y, X) or (Y, X, 3) -> segments; pictures of one size together.

        Raises UserError for pictures smaller than a patch, and of another type.
        """
        import torch

        pictures = [self._checked(signal) for signal in signals]
        padded = [_continued(picture, self.config.patch) for picture in pictures]
        found: dict[int, np.ndarray] = {}
        for some in _alike([p.shape for p in padded], PIXELS_AT_ONCE):
            stack = torch.from_numpy(np.stack([padded[i] for i in some])).float()
            images = stack.permute(0, 3, 1, 2) / 127.5 - 1
            codes = self._run(self._network.codes, images, images[0, 0].numel())[..., 0]
            found |= dict(zip(some, codes.numpy(), strict=True))
        return [
            Segment(
                "image",
                codes=in_rows(found[i].astype(np.int32), self._mark)[:, None],
                info={"height": p.shape[0], "width": p.shape[1], "channels": p.shape[2]},
            )
            for i, p in enumerate(pictures)
        ]

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Segments -> uint8 pictures, of the size that their info says or of whole patches.

        A row that was cut off at a cap is left out. Raises UserError for codes that are no rows.
        """
        import torch

        grids = [
            of_rows(checked_codes(segment, self.signature)[:, 0], self._mark)
            for segment in segments
        ]
        patch = self.config.patch
        found: dict[int, np.ndarray] = {}
        for some in _alike([grid.shape for grid in grids], PIXELS_AT_ONCE // patch**2):
            memory_budget.check(
                PIXEL_BYTES * grids[some[0]].size * patch**2, "image", "the picture of its codes"
            )
            codes = torch.from_numpy(np.stack([grids[i] for i in some])).long()
            if codes.numel():
                n_pixels = codes[0].numel() * patch**2
                images = self._run(self._network.images, codes[..., None], n_pixels)
                found |= dict(zip(some, from_tensor(images), strict=True))
        return [self._cut(found.get(i), segment.info) for i, segment in enumerate(segments)]

    def _checked(self, signal: np.ndarray) -> np.ndarray:
        """The picture as (Y, X, C)."""
        picture = checked_image(signal, None, None, self.config.channels)
        height, width, _ = picture.shape
        if min(height, width) < self.config.patch:
            raise UserError(
                f"image: {height} x {width} (height x width) is less than a patch of"
                f" {self.config.patch} x {self.config.patch}; enlarge it, or leave it out"
            )
        what = f"a picture of {height:,} x {width:,} pixels as codes"
        memory_budget.check(PIXEL_BYTES * height * width, "image", what)
        return picture

    def _cut(self, picture: np.ndarray | None, info: Mapping[str, Any]) -> np.ndarray:
        """The picture without what was continued; without codes a black patch."""
        patch = self.config.patch
        if picture is None:
            return without_grey_axis(np.zeros((patch, patch, self.config.channels), np.uint8))
        height, width = picture.shape[:2]
        sides = (int(info.get("height", height)), int(info.get("width", width)))
        fits = [0 <= n - side < patch for n, side in zip((height, width), sides, strict=True)]
        if all(fits):
            return picture[: sides[0], : sides[1]]
        return picture

    def _figures(self, segments: Sequence[Segment]) -> dict[str, float]:
        marks = [segment.values != self._mark for segment in segments]
        codes = [
            Segment("image", codes=segment.values[mark][:, None])
            for segment, mark in zip(segments, marks, strict=True)
        ]
        return super()._figures(codes)


def _continued(picture: np.ndarray, patch: int) -> np.ndarray:
    """(Y, X, C) with sides that the patch divides: its last row and column are repeated."""
    height, width, _ = picture.shape
    return np.pad(picture, ((0, -height % patch), (0, -width % patch), (0, 0)), mode="edge")


def _alike(shapes: Sequence[tuple[int, ...]], size: int) -> list[list[int]]:
    """The numbers of arrays in groups of one shape, of about `size` places at most each."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(i)
    found = []
    for shape, members in groups.items():
        n = max(1, size // max(1, shape[0] * shape[1]))
        found += [members[start : start + n] for start in range(0, len(members), n)]
    return found
