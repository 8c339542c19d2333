"""Encoder and decoder between an image and the vectors of its patches: one choice of three.

torch is imported only where a network is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmtok.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ConvPatches:
    """Convolutions over pixels, then over patches: for small pictures and small patches.

    Attributes:
        hidden: channels of the convolutions.
        blocks: residual blocks, in the encoder and in the decoder.
    """

    hidden: int = 64
    blocks: int = 1

    def __post_init__(self) -> None:
        _check(self, hidden=(1, 2**16), blocks=(0, 256))

    def encoder(self, channels: int, patch: int, n_out: int) -> nn.Module:
        """Images (B, channels, Y, X) -> (B, Y/patch, X/patch, n_out)."""
        from mmtok.nn.autoencoder import PatchEncoder

        return PatchEncoder(channels, patch, self.hidden, self.blocks, n_out)

    def decoder(self, channels: int, patch: int, n_in: int) -> nn.Module:
        """Vectors (B, Y/patch, X/patch, n_in) -> images (B, channels, Y, X)."""
        from mmtok.nn.autoencoder import PatchDecoder

        return PatchDecoder(channels, patch, self.hidden, self.blocks, n_in)


@dataclass(frozen=True)
class StagedConv:
    """Convolutions in stages of growing resolution, most of the work on patches.

    Esser et al. 2021 (VQGAN, arXiv 2012.09841), but without convolutions at the pixels' own
    resolution, where they cost most. One stage, whose pixels become channels at once, was best in
    a minute on a processor, and attention no gain (docs/figures.md).

    Attributes:
        width: channels on patches; half as many at each finer resolution. The dial of the size.
        blocks: residual blocks on patches, in the encoder and in the decoder.
        stages: resolutions; the last ones take a prime factor of the patch's side each, the first
            one what is left.
        attention: between all patches of an image; the width is then a multiple of 16.
    """

    width: int = 64
    blocks: int = 2
    stages: int = 1
    attention: bool = False

    def __post_init__(self) -> None:
        _check(self, width=(1, 2**13), blocks=(0, 256), stages=(1, 32))
        if self.attention and self.width % 16:
            raise UserError(
                f"StagedConv: width is {self.width}; with attention it must be a multiple of 16"
            )

    def encoder(self, channels: int, patch: int, n_out: int) -> nn.Module:
        """Images (B, channels, Y, X) -> (B, Y/patch, X/patch, n_out)."""
        from mmtok.nn.image_autoencoders import StagedEncoder

        sizes = (self.stages, self.width, self.blocks, self.attention)
        return StagedEncoder(channels, patch, *sizes, n_out)

    def decoder(self, channels: int, patch: int, n_in: int) -> nn.Module:
        """Vectors (B, Y/patch, X/patch, n_in) -> images (B, channels, Y, X)."""
        from mmtok.nn.image_autoencoders import StagedDecoder

        sizes = (self.stages, self.width, self.blocks, self.attention)
        return StagedDecoder(channels, patch, *sizes, n_in)


@dataclass(frozen=True)
class ViTPatches:
    """A transformer over patches (Yu et al. 2021, ViT-VQGAN, arXiv 2110.04627, section 3.1).

    Positions are rotary by row and column, so that no weight depends on the size of the grid.

    Attributes:
        width: numbers of a patch between the blocks, a multiple of 16. The dial of the size.
        depth: blocks, in the encoder and in the decoder.
    """

    width: int = 128
    depth: int = 3

    def __post_init__(self) -> None:
        _check(self, width=(16, 2**13), depth=(1, 256))
        if self.width % 16:
            raise UserError(f"ViTPatches: width is {self.width}; it must be a multiple of 16")

    def encoder(self, channels: int, patch: int, n_out: int) -> nn.Module:
        """Images (B, channels, Y, X) -> (B, Y/patch, X/patch, n_out)."""
        from mmtok.nn.image_autoencoders import ViTEncoder

        return ViTEncoder(channels, patch, self.width, self.depth, n_out)

    def decoder(self, channels: int, patch: int, n_in: int) -> nn.Module:
        """Vectors (B, Y/patch, X/patch, n_in) -> images (B, channels, Y, X)."""
        from mmtok.nn.image_autoencoders import ViTDecoder

        return ViTDecoder(channels, patch, self.width, self.depth, n_in)


Autoencoder = ConvPatches | StagedConv | ViTPatches


def _check(config: Any, **ranges: tuple[int, int]) -> None:
    """Raise UserError for a field outside its range."""
    name = type(config).__name__
    for field, (least, most) in ranges.items():
        value = getattr(config, field)
        if value < least:
            raise UserError(f"{name}: {field} is {value}; it must be at least {least}")
        if value > most:
            raise UserError(f"{name}: {field} is {value}; it must be at most {most:,}")
