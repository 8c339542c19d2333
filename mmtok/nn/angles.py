"""Angles in radians."""

from __future__ import annotations

import numpy as np


def wrap(phi: np.ndarray) -> np.ndarray:
    """Angles brought into [-pi, pi)."""
    return (phi + np.pi) % (2 * np.pi) - np.pi
