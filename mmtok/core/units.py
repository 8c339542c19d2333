"""The unit in which a modality's -log p is customarily told, and how many of them a segment has."""

from __future__ import annotations

import math
from typing import Any

from mmtok.core.segment import Segment, Signature

UNITS = {
    "text": ("bits/byte", math.log(2)),
    "image": ("bits/code", math.log(2)),
    "speech": ("nats/frame", 1.0),
    "jets": ("nats/particle", 1.0),
}


def customary(of: str | Signature, nats: float, units: float) -> tuple[float, str]:
    """Nats in the customary unit, of which there are so many, and the unit's name.

    of: a signature; the modality's name does where its frames are codes. Of latents that are cells
    of an axis ("bits/value") the nats are of probabilities, so that they compare with those of any
    other model of the same values; of continuous latents they are of a density over the latents as
    they are, standardised ones for those of this package.
    """
    unit, nats_per_unit = _unit(of)
    return nats / nats_per_unit / max(1, units), unit


def counted(unit: str) -> str:
    """What nats or bits per unit are divided by the number of: "particles" of "nats/particle"."""
    return unit.partition("/")[2] + "s"


def _unit(of: str | Signature) -> tuple[str, float]:
    if isinstance(of, Signature) and of.latent_size:
        return ("bits/value", math.log(2)) if of.cells else ("nats/frame", 1.0)
    return UNITS.get(of if isinstance(of, str) else of.modality, ("nats/frame", 1.0))


def is_density(signature: Signature) -> bool:
    """Whether nats of this signature's frames are of a density, which has no zero: below 0 is
    possible.
    """
    return bool(signature.latent_size) and not signature.cells


def units_of(tokenizer: Any, segment: Segment) -> int:
    """How many of what the customary unit counts a segment of this tokenizer has: bytes of a text,
    particles of a jet, values of what is discrete and given as latents, else frames.
    """
    if segment.latents is not None:
        return segment.latents.size if tokenizer.signature.cells else len(segment)
    match segment.modality:
        case "text":
            return len(tokenizer.decode(segment).encode())
        case "jets":
            return len(tokenizer.decode(segment))
    return len(segment)
