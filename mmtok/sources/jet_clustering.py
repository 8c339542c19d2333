"""Clustering of particles into jets: anti-kT (arXiv 0802.1189), by FastJet 3 (arXiv 1111.6097)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def anti_kt(
    momenta: Mapping[str, np.ndarray], n: np.ndarray, radius: float, min_pt: float
) -> list[list[np.ndarray]]:
    """The jets of each event, hardest first; a jet is the indices of its constituents in momenta.

    Args:
        momenta: px, py, pz and E of the particles of all events, each (all P,).
        n: (events,) how many particles each event has.
        radius: the size of a jet.
        min_pt: the least pt of a jet, in the unit of the momenta.
    """
    import awkward as ak
    import fastjet

    _hush(fastjet)
    particles = ak.unflatten(ak.zip(dict(momenta), with_name="Momentum4D"), n)
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, radius)
    found = fastjet.ClusterSequence(particles, definition).constituent_index(min_pt=min_pt)
    events: list[list[np.ndarray]] = []
    for start, jets in zip(np.cumsum(n) - n, found, strict=True):
        members = [start + np.asarray(jet) for jet in jets]
        px = momenta["px"]
        py = momenta["py"]
        members.sort(key=lambda jet: -np.hypot(px[jet].sum(), py[jet].sum()))
        events.append(members)
    return events


def _hush(fastjet: Any) -> None:
    """Turn fastjet's banner off where this build allows it.

    Its licence asks for the citation, which the head of this module gives.
    """
    sequence = getattr(getattr(fastjet, "_swig", None), "ClusterSequence", None)
    if sequence is not None:
        sequence.set_fastjet_banner_stream(None)
