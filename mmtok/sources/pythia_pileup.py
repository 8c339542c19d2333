"""Pile-up: the other collisions of a bunch crossing, soft QCD of Pythia 8 (SoftQCD:nonDiffractive).

Their number is Poisson distributed. They are taken from a pool of collisions that is made once for
a few hundred jets; each time one is taken it is turned about the beam by any angle, mirrored along
the beam or not, and set to a vertex of its own along the beam.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

POOL = 400  # collisions; 1.5 s of one core
Z_SPREAD_MM = 45.0  # standard deviation of collisions along the beam, about that of the LHC
SOFT = ("SoftQCD:nonDiffractive = on",)


class PileUp:
    """Draws pile-up events as columns of particles.

    Args:
        mu: the mean number of collisions.
        pool: of all collisions of the pool, one after another: columns px, py, pz, d0, dz and
            whatever else, (all P,) each.
        n: particles of each collision.
        seed: of all that is drawn.
    """

    def __init__(self, mu: float, pool: Mapping[str, np.ndarray], n: np.ndarray, seed: int) -> None:
        self.mu = mu
        self._pool = pool
        self._n = n
        self._first = np.cumsum(n) - n
        self._rng = np.random.default_rng(seed)

    def draw(self) -> dict[str, np.ndarray]:
        """The particles of one event's pile-up, as columns like the pool's."""
        rng = self._rng
        chosen = rng.integers(0, len(self._n), rng.poisson(self.mu))
        turn = rng.uniform(0, 2 * np.pi, len(chosen))
        side = rng.choice([-1.0, 1.0], len(chosen))
        vertex = rng.normal(0, Z_SPREAD_MM, len(chosen))
        n = self._n[chosen]
        # the places in the pool of the particles of each collision that was chosen
        start = np.repeat(self._first[chosen] - (np.cumsum(n) - n), n)
        places = start + np.arange(n.sum())
        event = {name: column[places] for name, column in self._pool.items()}
        cos = np.repeat(np.cos(turn), n)
        sin = np.repeat(np.sin(turn), n)
        side = np.repeat(side, n)
        px = event["px"]
        event["px"] = cos * px - sin * event["py"]
        event["py"] = sin * px + cos * event["py"]
        event["pz"] = side * event["pz"]
        is_track = event["charge"] != 0
        event["dz"] = (side * event["dz"] + np.repeat(vertex, n)) * is_track
        event["d0"] = side * event["d0"]  # the sign is that of a turn about the beam
        return event
