"""What is not drawn yet is white, whichever way a tokenizer cuts pictures into frames."""

import numpy as np
import pytest

from mmtok.strips import blanked
from mmtok.tokenizers.image import Pixels, PixelsConfig


@pytest.mark.parametrize("channels", [1, 3])
def test_hidden_values_of_pixels_are_white(channels):
    """The frames of pixels are values, colours apart: those shown are the picture's, the others 255."""
    tokenizer = Pixels(PixelsConfig(4, 2, channels, 256))
    picture = np.arange(8 * channels, dtype=np.uint8).reshape((4, 2, 3) if channels == 3 else (4, 2))
    hidden = np.random.default_rng(0).random(8 * channels) < 0.5
    codes = tokenizer.encode(picture).codes[:, 0]
    assert np.array_equal(blanked(picture, hidden).ravel(), np.where(hidden, 255, codes))


@pytest.mark.parametrize("colours", [(), (3,)])
def test_hidden_patches_are_white(colours):
    picture = np.zeros((4, 6, *colours), np.uint8)
    shown = blanked(picture, np.arange(6) >= 4)  # 2 x 3 patches of 2 x 2
    assert not shown[:2].any() and not shown[2:, :2].any() and (shown[2:, 2:] == 255).all()
