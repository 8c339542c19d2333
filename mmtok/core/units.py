"""The unit in which a modality's -log p is customarily given."""

from __future__ import annotations

import math

from mmtok.core.segment import Signature

# modality -> (unit, nats per bit or nat); of codes
UNITS = {
    "text": ("bits/byte", math.log(2)),
    "image": ("bits/code", math.log(2)),
    "speech": ("nats/frame", 1.0),
    "jets": ("nats/particle", 1.0),
}
DEFAULT = ("nats/frame", 1.0)


def customary(of: str | Signature, nats: float, units: float) -> tuple[float, str]:
    """`nats` over so many units, in the customary unit of `of`; and that unit's name.

    of: a signature, or the name of a modality whose frames are codes. Discrete latents
    ("bits/value") have probabilities, which compare with those of any other model of the same
    values. Continuous latents have densities over the latents as they are, which this package
    standardises.
    """
    unit, nats_per_unit = _unit(of)
    return nats / nats_per_unit / max(1, units), unit


def counted(unit: str) -> str:
    """What a unit counts: "particles" for "nats/particle"."""
    return unit.partition("/")[2] + "s"


def is_density(signature: Signature) -> bool:
    """Whether -log p is of a density, so that it may be below 0."""
    return bool(signature.latent_size) and not signature.cells


def _unit(of: str | Signature) -> tuple[str, float]:
    if isinstance(of, str):
        return UNITS.get(of, DEFAULT)
    if of.cells:
        return "bits/value", math.log(2)
    if of.latent_size:
        return DEFAULT
    return UNITS.get(of.modality, DEFAULT)
