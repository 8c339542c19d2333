"""Moving digits, and folders of videos."""

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources.image_files import write_image
from mmtok.sources.images import load_scans
from mmtok.sources.video_files import write_video
from mmtok.sources.videos import MovingDigits, VideoFolder, bounced


def test_what_bounces_is_a_triangle_wave():
    assert bounced(1, 1, 4, 9).tolist() == [1, 2, 3, 2, 1, 0, 1, 2, 3]
    assert bounced(1, -1, 4, 5).tolist() == [1, 0, 1, 2, 3]
    assert bounced(2, 0, 4, 3).tolist() == [2, 2, 2]
    assert bounced(0, 1, 1, 3).tolist() == [0, 0, 0]
    assert bounced(0, 1, 2, 4).tolist() == [0, 1, 0, 1]


def test_digits_move_and_keep_their_pixels(tmp_path):
    pytest.importorskip("sklearn")
    source = MovingDigits(n_pictures=5, side=14, step=3, copies=2)
    examples = list(source.examples("heldout"))
    scans, _ = load_scans("heldout")
    assert len(examples) == source.count("heldout") == len(scans)
    for example, scan in zip(examples[:50], scans, strict=False):
        video = example["video"]
        assert video.shape == (5, 14, 14) and video.dtype == np.uint8
        sums = video.astype(int).sum((1, 2))
        assert (sums == scan.astype(int).sum()).all()
        assert not np.array_equal(video[0], video[1])
    again = list(source.examples("heldout"))
    assert all(np.array_equal(a["video"], b["video"]) for a, b in zip(examples, again, strict=True))
    assert source.count("train") == 2 * source.clean().count("train")
    with pytest.raises(UserError, match="the step from 1"):
        MovingDigits(step=13)


def test_folders_hold_animations_and_folders_of_pictures(rng, tmp_path):
    def video(value):
        return np.full((3, 4, 4), value, np.uint8)

    for name in ("red_fox", "cat"):
        (tmp_path / name).mkdir()
    for i in range(3):
        write_video(tmp_path / "cat" / f"{i}.gif", video(i))
    (tmp_path / "red_fox" / "first").mkdir()
    for i in range(3):
        write_image(tmp_path / "red_fox" / "first" / f"{i}.png", np.full((4, 4), 70 + i, np.uint8))
    write_video(tmp_path / "alone.gif", video(9))
    source = VideoFolder(str(tmp_path), heldout_share=0.2)
    source.check()
    assert source.found() == "5 videos"
    both = {s: list(source.examples(s, tmp_path)) for s in source.splits}
    assert [len(x) for x in both.values()] == [4, 1]
    found = {
        (e["caption"], int(np.stack(e["video"].pictures).max())) for x in both.values() for e in x
    }
    assert found == {("cat", 0), ("cat", 1), ("cat", 2), ("red fox", 72), ("alone", 9)}


def test_too_few_videos_are_refused(tmp_path):
    for path in ("", str(tmp_path)):
        with pytest.raises(UserError, match="no such folder|holds 0 videos"):
            VideoFolder(path).check()
