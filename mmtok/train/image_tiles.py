"""Tiles of one size out of pictures of any size, for networks that learn from batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmtok.tokenizers.any_size import AnySizePatchesConfig


def tiles(
    pictures: Sequence[np.ndarray], config: AnySizePatchesConfig, seed: int
) -> list[np.ndarray]:
    """Tiles of the config's height and width at random places, so many as cover each picture.

    What a small picture lacks is its last row and column, repeated. The tiles are copies.
    """
    rng = np.random.default_rng(seed)
    found = []
    for picture in pictures:
        height, width = np.shape(picture)[:2]
        down = max(0, config.height - height)
        right = max(0, config.width - width)
        if down or right:
            further = [(0, 0)] * (np.ndim(picture) - 2)
            picture = np.pad(picture, [(0, down), (0, right), *further], mode="edge")
        height, width = np.shape(picture)[:2]
        n = max(1, round(height * width / (config.height * config.width)))
        tops = rng.integers(0, height - config.height + 1, n)
        lefts = rng.integers(0, width - config.width + 1, n)
        for top, left in zip(tops, lefts, strict=True):
            tile = picture[top : top + config.height, left : left + config.width]
            found.append(tile.copy())
    return found
