"""The unit in which a modality's -log p is customarily told, and how many of them a segment has."""

from __future__ import annotations

import math
from typing import Any

from mmtok.segment import Segment

UNITS = {"text": ("bits/byte", math.log(2)), "image": ("bits/code", math.log(2)), "speech": ("nats/frame", 1.0), "jets": ("nats/particle", 1.0)}


def customary(modality: str, nats: float, units: float) -> tuple[float, str]:
    """Nats in the modality's customary unit, of which there are so many, and the unit's name."""
    unit, nats_per_unit = UNITS.get(modality, ("nats/frame", 1.0))
    return nats / nats_per_unit / max(1, units), unit


def units_of(tokenizer: Any, segment: Segment) -> int:
    """How many of what the customary unit counts a segment of this tokenizer has: bytes of a text, particles of a jet, else frames."""
    match segment.modality:
        case "text":
            return len(tokenizer.decode(segment).encode())
        case "jets":
            return len(tokenizer.decode(segment))
    return len(segment)
