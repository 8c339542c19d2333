"""How a network's vectors become codes: one choice of four, each with its sizes and its look-up.

What is set here for training only is read by mmtok.train.quantizers. torch is imported only where a
look-up is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmtok.errors import UserError, check_ranges

if TYPE_CHECKING:
    from mmtok.nn.quantize import Codebook, FiniteScalars, ResidualCodebooks, Signs

MOST_CODES = 2**20  # of a codebook
MOST_SIZE = 2**16
MOST_BITS = 18  # training compares each vector with all 2^bits codes


@dataclass(frozen=True)
class VQ:
    """One codebook, learned as a moving average (van den Oord et al. 2017, appendix A.1).

    Attributes:
        n_codes: of the codebook.
        code_size: numbers of a code. Few make more of the codes used (Yu et al. 2021, ViT-VQGAN).
        normalised: vectors and codes have length 1.
        rotation: gradients are turned as a code is from its vector (Fifty et al. 2024, arXiv
            2410.06424), in the place of passing straight through.
    """

    n_codes: int = 64
    code_size: int = 8
    normalised: bool = False
    rotation: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, n_codes=(2, MOST_CODES), code_size=(1, MOST_SIZE))

    @property
    def levels(self) -> tuple[int, ...]:
        """Codes of each channel of a frame."""
        return (self.n_codes,)

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return self.code_size

    def look_up(self) -> Codebook:
        """An empty codebook."""
        from mmtok.nn.quantize import Codebook

        return Codebook(self.n_codes, self.code_size, self.normalised)


@dataclass(frozen=True)
class ResidualVQ:
    """Several codebooks, each of what those before it leave out; a frame has a code of each.

    Its codes depend on each other, so a `Chained` head draws them. Zeghidour et al. 2021
    (SoundStream, arXiv 2107.03312, section III.C).

    Attributes:
        n_books: codebooks, and channels of a frame.
        n_codes: of a codebook.
        code_size: numbers of a code.
        rotation: as of `VQ`.
    """

    n_books: int = 4
    n_codes: int = 64
    code_size: int = 8
    rotation: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, n_books=(2, 64), n_codes=(2, MOST_CODES), code_size=(1, MOST_SIZE))

    @property
    def levels(self) -> tuple[int, ...]:
        """Codes of each channel of a frame."""
        return (self.n_codes,) * self.n_books

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return self.code_size

    def look_up(self) -> ResidualCodebooks:
        """Empty codebooks."""
        from mmtok.nn.quantize import ResidualCodebooks

        return ResidualCodebooks(self.n_books, self.n_codes, self.code_size)


@dataclass(frozen=True)
class FSQ:
    """Each number of a vector has few levels; nothing is learned (Mentzer et al. 2023).

    arXiv 2309.15505. Its table 1 has (8, 6, 5) for about 2^8 codes, (8, 5, 5, 5) for 2^10,
    (7, 5, 5, 5, 5) for 2^12, (8, 8, 8, 6, 5) for 2^14, (8, 8, 8, 5, 5, 5) for 2^16.

    Attributes:
        n_levels: of each number, at least 3; the codes are all their combinations.
    """

    n_levels: tuple[int, ...] = (8, 6, 5)

    def __post_init__(self) -> None:
        if not self.n_levels or min(self.n_levels) < 3:
            raise UserError(
                f"FSQ: n_levels is {self.n_levels}; it must be one or more numbers of at least 3,"
                " such as (8, 5, 5, 5); LFQ is for two levels each"
            )
        if math.prod(self.n_levels) > MOST_CODES:
            raise UserError(
                f"FSQ: n_levels make {math.prod(self.n_levels):,} codes; at most {MOST_CODES:,}"
            )

    @property
    def levels(self) -> tuple[int, ...]:
        """Codes of each channel of a frame."""
        return (math.prod(self.n_levels),)

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return len(self.n_levels)

    def look_up(self) -> FiniteScalars:
        """The look-up."""
        from mmtok.nn.quantize import FiniteScalars

        return FiniteScalars(self.n_levels)


@dataclass(frozen=True)
class LFQ:
    """Each number of a vector is its sign; nothing is learned (Yu et al. 2023, MAGVIT-v2).

    arXiv 2310.05737, section 3.1. An entropy term keeps all codes in use: of a vector's codes low,
    of a batch's high.

    Attributes:
        n_bits: of a code, so that there are 2^n_bits.
        spherical: vectors have length 1 (Zhao et al. 2024, BSQ, arXiv 2406.07548).
        entropy_weight: of the entropy term in nats, next to the mean error of pixels.
    """

    n_bits: int = 8
    spherical: bool = True
    entropy_weight: float = 0.02

    def __post_init__(self) -> None:
        check_ranges(self, n_bits=(1, MOST_BITS))
        if not 0 <= self.entropy_weight < math.inf:
            raise UserError(
                f"LFQ: entropy_weight is {self.entropy_weight}; it must be a finite number, at"
                " least 0"
            )

    @property
    def levels(self) -> tuple[int, ...]:
        """Codes of each channel of a frame."""
        return (2**self.n_bits,)

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return self.n_bits

    def look_up(self) -> Signs:
        """The look-up."""
        from mmtok.nn.quantize import Signs

        return Signs(self.n_bits, self.spherical)


Quantizer = VQ | ResidualVQ | FSQ | LFQ
