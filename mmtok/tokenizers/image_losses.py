"""What the training of an image tokenizer lowers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mmtok.errors import UserError


@dataclass(frozen=True)
class ImageLosses:
    """The error of pixels and two terms that make pictures sharp; a weight of 0 leaves one out.

    Attributes:
        pixels: l2, the mean squared error of values in -1..1, or l1, the mean absolute one.
        perceptual: weight of the distance of features of a classifier of photographs
            (efficientnet-lite0, of the extra `pictures`).
        adversarial: weight of a discriminator of patches, times the ratio of the gradients' norms
            at the decoder's last layer (Esser et al. 2021, VQGAN, arXiv 2012.09841, eq. 7).
        adversarial_from: the share of the steps after which the discriminator counts; it learns
            from a tenth of all steps earlier on. One that counts from the start ruins pictures.
    """

    pixels: Literal["l1", "l2"] = "l2"
    perceptual: float = 0.0
    adversarial: float = 0.0
    adversarial_from: float = 0.5

    def __post_init__(self) -> None:
        for name, most in (("perceptual", math.inf), ("adversarial", math.inf)):
            value = getattr(self, name)
            if not 0 <= value < most:
                raise UserError(
                    f"ImageLosses: {name} is {value}; it must be a finite number, at least 0"
                )
        if not 0 <= self.adversarial_from < 1:
            raise UserError(
                f"ImageLosses: adversarial_from is {self.adversarial_from}; it must be from 0 to"
                " below 1"
            )
