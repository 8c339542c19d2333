"""From files and folders to token files: what is broken is found before anything is encoded; leftovers of killed calls."""

import subprocess
import sys

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.data.convert import tokenize_files
from mmtok.data.images import write_image
from mmtok.data.jets import write_jets
from mmtok.data.tokens import read_tokens
from mmtok.segment import BadInput

KILLED = "import os, signal, sys; from mmtok.cli import main; os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL); main(sys.argv[1:])"


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


def test_jets_in_mev_are_no_token_file_unless_allowed(tmp_path, capsys):
    jets = [np.array([[9e4, 0.1, 0], [4e3, 0, 0.1], [3.0, 0, 0]], np.float32)] * 3
    write_jets(tmp_path / "mev.npz", jets)
    command = ["tokenize", "jets", str(tmp_path / "mev.npz"), "-o", str(tmp_path / "t.parquet")]
    assert main(command) == 2
    line, = capsys.readouterr().err.splitlines()[-1:]
    assert "is pt in MeV" in line and "--allow-clipping" in line and not list(tmp_path.glob("*t.parquet*"))
    assert main([*command, "--allow-clipping"]) == 0 and len(read_tokens(tmp_path / "t.parquet")) == 3
    assert "6 of 9 particles were clipped in pt_gev" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("a")
    assert main(["tokenize", "text", str(tmp_path / "a.txt"), "-o", str(tmp_path / "u.parquet"), "--allow-clipping"]) == 2
    assert "is for jets" in capsys.readouterr().err


def killed(*words):
    """A command line that is killed at the moment when its first file would get its name."""
    assert subprocess.run([sys.executable, "-c", KILLED, *map(str, words)], stderr=subprocess.DEVNULL).returncode == -9


def test_what_a_killed_call_left_is_swept_by_the_next(tmp_path):
    (tmp_path / "a.txt").write_text("seven")
    (tmp_path / ".notes.999999999.tmp").write_text("of another program")
    (tmp_path / ".a.txt.999999999.tmp").write_text("of another file")
    words = ["tokenize", "text", tmp_path / "a.txt", "-o", tmp_path / "t.parquet"]
    killed(*words)
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == 4 and "t.parquet" not in names
    assert main([str(word) for word in words]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "t.parquet", ".notes.999999999.tmp", ".a.txt.999999999.tmp"}
