"""Encoder and decoder between constituents and the vectors of their codes: one choice of two.

torch is imported only where a network is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmtok.errors import UserError, check_ranges

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class PerParticle:
    """Each constituent by itself: a code means the same in every jet.

    The *unconditional* tokens of OmniJet-alpha (arXiv 2403.05618), whose sizes are the defaults.

    Attributes:
        width: hidden numbers.
        layers: hidden layers, in the encoder and in the decoder.
    """

    width: int = 128
    layers: int = 3

    def __post_init__(self) -> None:
        check_ranges(self, width=(1, 2**13), layers=(1, 64))

    def network(self, n_in: int, n_out: int) -> nn.Module:
        """Constituents (N, n_in) -> (N, n_out)."""
        from mmtok.nn.set_autoencoder import ElementNetwork

        return ElementNetwork(n_in, n_out, self.width, self.layers)


@dataclass(frozen=True)
class WholeJet:
    """All constituents of a jet by attention: what a code means depends on the jet's other codes.

    The *conditional* tokens of OmniJet-alpha, which has a width of 128, 4 blocks and 8 heads.

    Attributes:
        width: hidden numbers, a multiple of n_heads. The dial of the size.
        blocks: in the encoder and in the decoder.
        n_heads: of attention.
    """

    width: int = 64
    blocks: int = 2
    n_heads: int = 4

    def __post_init__(self) -> None:
        check_ranges(self, width=(1, 2**13), blocks=(1, 256), n_heads=(1, 1024))
        if self.width % self.n_heads:
            raise UserError(
                f"WholeJet: width is {self.width}; it must be a multiple of n_heads, which is"
                f" {self.n_heads}"
            )

    def network(self, n_in: int, n_out: int) -> nn.Module:
        """Constituents (N, n_in) -> (N, n_out)."""
        from mmtok.nn.set_autoencoder import SetNetwork

        return SetNetwork(n_in, n_out, self.width, self.blocks, self.n_heads)


JetNetwork = WholeJet | PerParticle
