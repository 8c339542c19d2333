"""Sound files alone: all of them, a tenth held out, the broken ones counted."""

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources.sound_files import write_sound
from mmtok.sources.sounds import SoundFolder


def test_every_file_below_is_a_clip_of_one_split(tmp_path):
    for i in range(20):
        write_sound(tmp_path / f"{i % 3}" / f"{i}.wav", np.full(160 * (i + 1), 0.1, np.float32))
    (tmp_path / "0" / "0.txt").write_text("zero")
    source = SoundFolder(str(tmp_path))
    source.check()
    lengths = {
        split: [len(example["speech"].samples) for example in source.examples(split)]
        for split in source.splits
    }
    assert len(lengths["heldout"]) == 2
    found = sorted(lengths["train"] + lengths["heldout"])
    assert found == [160 * (i + 1) for i in range(20)]
    assert source.found() == "18 clips in train, 2 clips in heldout"
    with pytest.warns(UserWarning, match="left out"):
        assert len(list(SoundFolder(str(tmp_path), min_duration_s=0.1).examples("train"))) < 12


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such"):
        SoundFolder(str(tmp_path / "none")).check()
    with pytest.raises(UserError, match="without a file that can be used"):
        SoundFolder(str(tmp_path)).check()
