"""Video files: animations and folders of pictures."""

import numpy as np
import pytest
from PIL import Image

from mmtok.errors import UserError
from mmtok.sources.image_files import write_image
from mmtok.sources.video_files import read_video, write_video


def test_grey_videos_come_back_with_pictures_that_stand_still(rng, tmp_path):
    video = rng.integers(0, 256, (6, 5, 4), dtype=np.uint8)
    video[2] = video[1]
    video[3] = video[1]
    write_video(tmp_path / "a.gif", video)
    again = read_video(tmp_path / "a.gif")
    assert np.array_equal(np.stack(again.pictures), video) and not again.done
    write_video(tmp_path / "one.gif", video[:1])
    assert np.array_equal(np.stack(read_video(tmp_path / "one.gif").pictures), video[:1])


def test_colours_come_back_where_they_are_few(rng, tmp_path):
    palette = rng.integers(0, 256, (20, 3), dtype=np.uint8)
    video = palette[rng.integers(0, 20, (4, 8, 8))]
    write_video(tmp_path / "a.gif", video)
    assert np.array_equal(np.stack(read_video(tmp_path / "a.gif").pictures), video)


def test_pictures_that_last_longer_come_as_often_and_uneven_ones_are_said(tmp_path):
    pictures = [Image.fromarray(np.full((4, 4), v, np.uint8)) for v in (0, 90, 250)]
    for name, lasting, n, said in (("a", [40, 80, 40], 4, 0), ("b", [40, 140, 40], 6, 1)):
        pictures[0].save(
            tmp_path / f"{name}.gif", save_all=True, append_images=pictures[1:], duration=lasting
        )
        found = read_video(tmp_path / f"{name}.gif")
        assert len(found.pictures) == n and len(found.done) == said
        assert [p.max() for p in found.pictures] == [0, *[90] * (n - 2), 250]


def test_a_folder_is_read_by_the_numbers_in_its_names(tmp_path):
    for k in (10, 9, 1, 100):
        write_image(tmp_path / f"p{k}.png", np.full((2, 3), k, np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    assert [p[0, 0] for p in read_video(tmp_path).pictures] == [1, 9, 10, 100]


def test_what_is_no_video_is_refused_in_a_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.gif").write_text("words")
    write_video(
        tmp_path / "cut.gif", np.zeros((9, 40, 40), np.uint8) + np.arange(40, dtype=np.uint8)
    )
    content = (tmp_path / "cut.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(content[: len(content) // 3])
    for name in ("empty", "words.gif", "cut.gif", "none.gif"):
        with pytest.raises(UserError, match=name) as error:
            read_video(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="at least one picture"):
        write_video(tmp_path / "a.gif", np.zeros((0, 2, 2), np.uint8))
