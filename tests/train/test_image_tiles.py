"""Tiles are cut out of pictures of any size as they are, and small ones are continued."""

import numpy as np

from mmtok.tokenizers.any_size import AnySizePatchesConfig
from mmtok.train.image_tiles import tiles


def test_tiles_are_of_one_size_and_cover(rng):
    config = AnySizePatchesConfig(height=4, width=6, patch=2)
    large = np.arange(40 * 30).reshape(40, 30).astype(np.uint16)
    found = tiles([large], config, 0)
    assert len(found) == 40 * 30 // 24 and all(tile.shape == (4, 6) for tile in found)
    for tile in found:  # cut out as they are
        assert (np.diff(tile.astype(int)) == 1).all() and (
            np.diff(tile.astype(int), axis=0) == 30
        ).all()
    small = rng.integers(0, 256, (2, 3, 3), dtype=np.uint8)
    (tile,) = tiles([small], config, 0)
    assert tile.shape == (4, 6, 3)
    assert np.array_equal(tile[:2, :3], small) and (tile[2:, :3] == small[-1:]).all()
