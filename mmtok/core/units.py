"""Customary units: of a modality's -log p, and dB for the error of images."""

from __future__ import annotations

import math

import numpy as np

from mmtok.core.segment import Signature

# modality -> (unit, nats per bit or nat); of codes
UNITS = {
    "text": ("bits/byte", math.log(2)),
    "image": ("bits/code", math.log(2)),
    "video": ("bits/code", math.log(2)),
    "speech": ("nats/frame", 1.0),
    "jets": ("nats/particle", 1.0),
    "conformer": ("nats/atom", 1.0),
}
DEFAULT = ("nats/frame", 1.0)

# The signal-to-noise ratio of equal images: finite, so that JSON can hold it.
EXACT_DB = 100.0


def customary(of: str | Signature, nats: float, units: float) -> tuple[float, str]:
    """`nats` over so many units, in the customary unit of `of`; and that unit's name.

    of: a signature, or the name of a modality whose frames are codes. Discrete latents
    ("bits/value") have probabilities, which compare with those of any other model of the same
    values. Continuous latents have densities over the latents as they are, which this package
    standardises; of a vector of quantities the density is in the caller's unit.
    """
    unit, nats_per_unit = _unit(of)
    return nats / nats_per_unit / max(1, units), unit


def counted(unit: str) -> str:
    """What a unit counts: "particles" for "nats/particle"."""
    return unit.partition("/")[2] + "s"


def is_density(signature: Signature) -> bool:
    """Whether -log p is of a density, so that it may be below 0."""
    return bool(signature.latent_size) and not signature.cells and not signature.counts


def psnr_db(mean_square: float) -> float:
    """Peak signal-to-noise ratio in dB of images whose values 0..255 differ so much on average.

    10 log10(255^2 / mean squared error), at most EXACT_DB, which is that of equal images.
    """
    if mean_square == 0:
        return EXACT_DB
    return min(EXACT_DB, float(10 * np.log10(255.0**2 / mean_square)))


def _unit(of: str | Signature) -> tuple[str, float]:
    if isinstance(of, str):
        return UNITS.get(of, DEFAULT)
    if of.cells:
        return "bits/value", math.log(2)
    if of.latent_size and not of.unordered:
        return DEFAULT
    return UNITS.get(of.modality, DEFAULT)
