"""Frames of a segment of fixed length as a picture: where each frame lies, and what it holds.

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
class Patchify:
    """Between frames and pictures.

    Attributes:
        grid: (rows, columns) of frames, row after row.
        patch: a frame holds a patch x patch square of the picture's channels.
        n_channels: C.
    """

    grid: tuple[int, int]
    patch: int
    n_channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, Y, X)."""
        return self.n_channels, self.grid[0] * self.patch, self.grid[1] * self.patch

    def picture(self, frames: Tensor) -> Tensor:
        """Frames (N, T, D) -> (N, C, Y, X)."""
        return F.pixel_shuffle(frames.transpose(1, 2).unflatten(2, self.grid), self.patch)

    def frames(self, picture: Tensor) -> Tensor:
        """The inverse of `picture`."""
        return F.pixel_unshuffle(picture, self.patch).flatten(2).transpose(1, 2)


def patchify_of(signature: Signature, grid: tuple[int, int] | None, patch: int) -> Patchify:
    """How this signature's frames make a picture. Raises UserError where they make none."""
    n_channels, rest = divmod(signature.latent_size, patch**2)
    if rest:
        raise UserError(
            f"{signature.modality}: {signature.latent_size} latents per frame are no patches of"
            f" {patch} x {patch}"
        )
    return Patchify(grid_of(signature, grid), patch, n_channels)


def grid_of(signature: Signature, grid: tuple[int, int] | None) -> tuple[int, int]:
    """(rows, columns) of a segment's frames; None: a square where possible, else one row.

    Raises UserError unless the signature has a fixed count of frames, as many as the grid.
    """
    n_frames = signature.frames
    if n_frames is None:
        raise UserError(
            f"{signature.modality} runs until its end mark: a head that draws whole segments needs"
            " a fixed count of frames"
        )
    if grid is None:
        side = math.isqrt(n_frames)
        return (side, side) if side**2 == n_frames else (1, n_frames)
    rows, columns = grid
    if rows * columns != n_frames:
        raise UserError(
            f"{signature.modality} has {n_frames} frames, which are no grid of {rows} x {columns}"
        )
    return grid
