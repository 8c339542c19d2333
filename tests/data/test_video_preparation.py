"""Videos before they are tokenised."""

import numpy as np
import pytest

from mmtok.data.video_preparation import VideoPreparation
from mmtok.errors import UserError
from mmtok.io.tally import Tally
from mmtok.sources.video_files import Video

TAKES = {"height": 4, "width": 4, "channels": 1}


def prepared(preparation, video):
    tally = Tally("videos")
    return preparation.prepare(video, "a", tally, **TAKES), tally.counts


def test_pictures_are_chosen_and_prepared_each_and_all_is_said_once(rng):
    video = rng.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    found, said = prepared(VideoPreparation(every=2, max_pictures=3), Video(video, "a", ("odd",)))
    one, _ = prepared(VideoPreparation(), video[2:3])
    assert found.shape == (3, 4, 4) and np.array_equal(found[1], one[0])
    assert set(said.values()) == {1} and len(said) == 5  # odd, thinned, cut, grey, resized


def test_what_fits_stays_as_it_is(rng):
    video = rng.integers(0, 256, (2, 4, 4), dtype=np.uint8)
    found, said = prepared(VideoPreparation(), video)
    assert np.array_equal(found, video) and not said


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="every is 0"):
        VideoPreparation(every=0)
