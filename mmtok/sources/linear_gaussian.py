"""A linear model with Gaussian noise: unknowns theta, measurements x, and the exact posterior.

theta of N(0, 1) in D dimensions, x = A theta + e with e of N(0, noise^2), K measurements. Then
theta given x is N(S A^T x / noise^2, S) with S = (1 + A^T A / noise^2)^-1 (Bishop 2006, equations
2.116 and 2.117). Whatever learns p(theta | x) can be held against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.errors import UserError
from mmtok.sources.base import Source


@dataclass(frozen=True)
class LinearGaussian(Source):
    """Examples of theta (D,) and x (K,), made as they are asked for.

    Attributes:
        size: D, unknowns.
        measurements: K.
        noise: the standard deviation of e.
        n_train: examples to train on.
        n_heldout: examples held out.
        seed: of A and of the examples.
    """

    size: int = 2
    measurements: int = 3
    noise: float = 0.5
    n_train: int = 20_000
    n_heldout: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("size", "measurements", "n_train", "n_heldout"):
            if getattr(self, name) < 1:
                raise UserError(f"LinearGaussian: {name} is {getattr(self, name)}; at least 1")
        if not 0 < self.noise < np.inf:
            raise UserError(f"LinearGaussian: noise is {self.noise}; it must be above 0, finite")

    @property
    def fields(self) -> dict[str, str]:
        """Both are modalities of their own."""
        return {"x": "x", "theta": "theta"}

    @property
    def matrix(self) -> np.ndarray:
        """A (K, D)."""
        shape = (self.measurements, self.size)
        return np.random.default_rng((self.seed, 0)).normal(size=shape)

    def posterior(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (N, D) and covariance (D, D) of theta given x (N, K)."""
        a = self.matrix
        covariance = np.linalg.inv(np.eye(self.size) + a.T @ a / self.noise**2)
        return x @ a @ covariance / self.noise**2, covariance

    def examples(self, split: str, cache: Path) -> Iterator[dict[str, Any]]:
        """The examples of a split; see `Source.examples`."""
        self.check_split(split)
        n = self.count(split, cache)
        rng = np.random.default_rng((self.seed, 1 + self.splits.index(split)))
        theta = rng.normal(size=(n, self.size))
        x = theta @ self.matrix.T + self.noise * rng.normal(size=(n, self.measurements))
        for one, measured in zip(theta, x, strict=True):
            yield {"x": measured, "theta": one}

    def count(self, split: str, cache: Path) -> int:
        """As the settings say."""
        return self.n_train if split == "train" else self.n_heldout
