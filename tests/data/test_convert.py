"""From files and folders to token files: what is broken is found before anything is encoded."""

import numpy as np
import pytest

from mmtok.data.convert import tokenize_files
from mmtok.data.images import write_image
from mmtok.segment import BadInput


@pytest.fixture
def pictures(tmp_path):
    """A folder with ten pictures, and a hidden one."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(10):
        write_image(folder / f"{i}.png", np.full((4, 4), i, np.uint8))
    (folder / "._0.png").write_bytes(b"x")
    return folder


def test_a_folder_stands_for_the_files_in_it(pictures, tmp_path):
    with pytest.warns(UserWarning, match="left out 1 hidden"):
        done = tokenize_files("image", [pictures], tmp_path / "t.parquet")
    assert done.rows == 10


def test_all_broken_files_are_named_before_any_is_encoded(pictures, tmp_path, monkeypatch):
    for i in (7, 9):
        (pictures / f"{i}.png").write_bytes(b"no picture")
    monkeypatch.setattr("mmtok.data.convert._encode", lambda *_: pytest.fail("nothing is encoded before all were looked at"))
    files = sorted(pictures.glob("[0-9].png"))
    with pytest.raises(BadInput, match="7.png: not an image .*; likewise .*9.png: 2 of 10 files cannot be used; mend or remove them"):
        tokenize_files("image", files, tmp_path / "t.parquet")
    assert list(tmp_path.iterdir()) == [pictures]
