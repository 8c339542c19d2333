"""Frames of a segment of fixed length as a picture: which frame stands where, and what its latents
are.

Letters: N segments, T frames, D latent size, C, Y, X of a picture; Y = rows * patch, X = columns *
patch, D = C * patch^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from mmtok.core.segment import Signature
from mmtok.errors import UserError


@dataclass(frozen=True)
class Raster:
    """grid (rows, columns) of frames, in raster order; a frame's latents are a patch x patch square
    of the picture's channels.
    """

    grid: tuple[int, int]
    patch: int
    n_channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, Y, X)."""
        return self.n_channels, self.grid[0] * self.patch, self.grid[1] * self.patch

    def picture(self, values: Tensor) -> Tensor:
        """Frames (N, T, D) -> (N, C, Y, X)."""
        return F.pixel_shuffle(values.transpose(1, 2).unflatten(2, self.grid), self.patch)

    def frames(self, picture: Tensor) -> Tensor:
        """The inverse of `picture`."""
        return F.pixel_unshuffle(picture, self.patch).flatten(2).transpose(1, 2)


def patchify_of(signature: Signature, grid: tuple[int, int] | None, patch: int) -> Raster:
    """The picture that this signature's frames make. Raises UserError where they make none."""
    n_channels, rest = divmod(signature.latent_size, patch**2)
    if rest:
        raise UserError(
            f"{signature.modality}: {signature.latent_size} latents per frame are no patches of"
            f" {patch} x {patch}"
        )
    return Raster(grid_of(signature, grid), patch, n_channels)


def grid_of(signature: Signature, grid: tuple[int, int] | None) -> tuple[int, int]:
    """(rows, columns) of a segment's frames.

    Raises UserError unless there is a fixed count of them, which the grid has.
    """
    if signature.frames is None:
        raise UserError(
            f"{signature.modality} runs until its end mark: a head that draws whole segments needs"
            " a fixed count of frames"
        )
    side = math.isqrt(signature.frames)
    rows, columns = grid or ((side, side) if side**2 == signature.frames else (1, signature.frames))
    if rows * columns != signature.frames:
        raise UserError(
            f"{signature.modality} has {signature.frames} frames, which are no grid of {rows} x"
            f" {columns}"
        )
    return rows, columns
