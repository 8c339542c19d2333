"""Pictures get the tokenizer's size and colours: stretched, cropped or padded, over a stated
background.
"""

import numpy as np
import pytest

from mmtok.data.image_preparation import ImagePreparation
from mmtok.errors import UserError
from mmtok.io.tally import Tally
from mmtok.sources.base import Picture

HALVES = np.repeat([[0] * 4 + [255] * 4], 4, 0).astype(np.uint8)  # (4, 8): left black, right white


def prepared(pixels, how=(), **takes):
    tally = Tally("images")
    return ImagePreparation(**dict(how)).prepare(pixels, "a.png", tally, **takes), list(
        tally.counts
    )


def test_what_fits_is_taken_as_it_is():
    for takes in ({}, {"height": 4, "width": 8, "channels": 1}):
        out, said = prepared(HALVES, **takes)
        assert np.array_equal(out, HALVES) and said == []
    assert np.array_equal(prepared(HALVES[:, :, None])[0], HALVES)


def test_stretched_both_halves_stay():
    out, said = prepared(HALVES, height=4, width=4)
    assert (
        out[0, 0] < 20
        and out[0, 3] > 235
        and said == ["resized to 4 x 4 (height x width), its proportions changed"]
    )
    assert prepared(HALVES, height=2, width=4)[1] == ["resized to 2 x 4 (height x width)"]


def test_cropped_the_middle_stays():
    out, said = prepared(HALVES, {"fit": "crop"}, height=4, width=4)
    assert np.array_equal(out, HALVES[:, 2:6]) and said == [
        "resized to 4 x 4 (height x width), its edges cut off"
    ]


def test_padded_everything_stays_on_the_background():
    out, said = prepared(HALVES, {"fit": "pad", "background": "#404040"}, height=8, width=8)
    assert np.array_equal(out[2:6], HALVES) and (out[[0, 1, 6, 7]] == 64).all()
    assert said == ["resized to 8 x 8 (height x width), padded"]
    thin = prepared(np.zeros((1, 1_000), np.uint8), {"fit": "pad"}, height=8, width=8)[0]
    assert thin.shape == (8, 8) and (thin == 0).sum() == 8  # a row at least


def test_transparency_shows_the_background():
    clear = np.zeros((1, 2, 4), np.uint8)
    clear[0, 1] = (10, 20, 30, 255)
    out, said = prepared(clear, {"background": "red"})
    assert out.tolist() == [[[255, 0, 0], [10, 20, 30]]] and said == [
        "laid over red where there is transparency"
    ]
    assert prepared(np.full((1, 1, 2), 128, np.uint8))[0].tolist() == [
        [191]
    ]  # half of grey 128 over white
    assert prepared(np.full((1, 1, 4), 255, np.uint8))[1] == []  # opaque


def test_colours_become_the_tokenizers():
    red = np.full((2, 2, 3), (255, 0, 0), np.uint8)
    out, said = prepared(red, channels=1)
    assert out.shape == (2, 2) and (out == 76).all() and said == ["turned grey"]  # ITU-R 601
    out, said = prepared(HALVES, channels=3)
    assert out.shape == (4, 8, 3) and said == []  # nothing is lost


def test_what_a_reader_did_is_counted_too():
    out, said = prepared(Picture(HALVES, "a.png", ("reduced from 16 bits to 8",)))
    assert np.array_equal(out, HALVES) and said == ["reduced from 16 bits to 8"]


def test_what_is_no_picture_is_left_to_the_tokenizer():
    for wrong in (np.zeros((2, 2)), np.zeros((2, 2, 5), np.uint8), np.zeros((0, 2), np.uint8)):
        assert prepared(wrong, height=1, width=1)[0] is wrong


@pytest.mark.parametrize("background", ["wite", "#12", "", "#ffffff00"])
def test_no_colour_is_refused(background):
    with pytest.raises(UserError, match="background"):
        ImagePreparation(background=background)


# ---- any size


def test_for_any_size_only_what_is_too_large_is_scaled_in_its_proportions(rng):
    picture = rng.integers(0, 256, (30, 60, 3), dtype=np.uint8)
    same, said = prepared(picture, {"max_pixels": 1800}, channels=3, least_side=4)
    assert np.array_equal(same, picture) and said == []
    small, said = prepared(picture, {"max_pixels": 450}, channels=3, least_side=4)
    assert small.shape == (15, 30, 3) and said == ["scaled down to at most 450 pixels"]
    thin, _ = prepared(np.zeros((4, 900), np.uint8), {"max_pixels": 400}, least_side=4)
    assert thin.shape == (4, 300)  # a patch at least


def test_a_picture_below_a_patch_is_refused():
    with pytest.raises(UserError, match=r"3 x 90 \(height x width\) is less than a patch of 4 x 4"):
        prepared(np.zeros((3, 90), np.uint8), least_side=4)


def test_choices_that_would_do_nothing_are_refused():
    one_size = {"height": 8, "width": 9, "channels": 1}
    any_size = {"height": None, "width": None, "channels": 1}
    with pytest.raises(UserError, match="max_pixels is 5, but the tokenizer takes 8 x 9 pixels"):
        ImagePreparation(max_pixels=5).check_takes(one_size)
    with pytest.raises(UserError, match="fit is 'crop', but the tokenizer takes pictures of any"):
        ImagePreparation(fit="crop").check_takes(any_size)
    ImagePreparation(max_pixels=5).check_takes(any_size)
    ImagePreparation(fit="crop").check_takes(one_size)
    with pytest.raises(UserError, match="max_pixels is -1"):
        ImagePreparation(max_pixels=-1)
