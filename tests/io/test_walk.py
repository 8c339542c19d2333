"""Folders are walked by one rule, and whatever is left out is counted."""

import os

import pytest

from mmtok.errors import UserError
from mmtok.io.walk import file_at, files_among, folder_at, walk
from mmtok.sources.jets import JetFile
from mmtok.sources.text import TextFile


def put(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def names(found):
    return [path.relative_to(found.folder).as_posix() for path in found.files]


def test_hidden_and_system_files_are_left_out_and_counted(tmp_path):
    put(
        tmp_path,
        "b.JPG",
        "a.jpg",
        "z/c.Jpg",
        "._x.jpg",
        ".hidden/d.jpg",
        ".ipynb_checkpoints/e.jpg",
        "__MACOSX/f.jpg",
        "z/Thumbs.db",
        "notes.md",
        "README",
    )
    found = walk(tmp_path, {".jpg"})
    assert names(found) == ["a.jpg", "b.JPG", "z/c.Jpg"]
    assert found.left_out == {
        "hidden or system files and folders": (5, "._x.jpg"),
        ".md files": (1, "notes.md"),
        "files without a suffix": (1, "README"),
    }
    assert (
        found.note()
        == f"{tmp_path}: left out 5 hidden or system files and folders (first ._x.jpg), "
        "1 .md files (first notes.md), 1 files without a suffix (first README)"
    )


def test_a_hidden_folder_may_be_named_itself(tmp_path):
    put(tmp_path, ".data/a.jpg")
    assert names(walk(tmp_path / ".data", {".jpg"})) == ["a.jpg"]


def test_links_are_followed_once_and_loops_are_cut(tmp_path):
    put(tmp_path, "in/real/a.jpg", "out/b.jpg", "out/deep/c.jpg")
    top = tmp_path / "in"
    (top / "0first").symlink_to(
        top / "real"
    )  # before the folder itself, whose own name counts nevertheless
    (top / "loop").symlink_to(top)
    (top / "other").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "back").symlink_to(top / "other")
    (top / "nothing.jpg").symlink_to(tmp_path / "nowhere")
    found = walk(top, {".jpg"})
    assert names(found) == ["other/b.jpg", "other/deep/c.jpg", "real/a.jpg"]
    assert {kind: count for kind, (count, _) in found.left_out.items()} == {
        "links to a folder that was met before": 3,
        "links to nothing": 1,
    }


def test_one_file_under_two_names_is_one_file(tmp_path):
    put(tmp_path, "b.jpg", "c.jpg")
    (tmp_path / "a.jpg").symlink_to("b.jpg")
    os.link(tmp_path / "c.jpg", tmp_path / "d.jpg")
    found = walk(tmp_path, {".jpg"})
    assert names(found) == ["b.jpg", "c.jpg"]
    assert found.left_out == {"second names of one file": (2, "d.jpg")}


def test_what_is_no_file_is_not_opened(tmp_path):
    put(tmp_path, "a.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    with open(os.fsencode(tmp_path) + b"/\xff.wav", "w"):
        pass
    found = walk(tmp_path, {".wav"})
    assert names(found) == ["a.wav"]
    assert set(found.left_out) == {"pipes, sockets or devices", "names that are not UTF-8"}
    found.note().encode()


def test_what_goes_with_the_files_is_kept_apart(tmp_path):
    put(tmp_path, "a.wav", "a.TXT", "b.md")
    found = walk(tmp_path, (".wav",), companions=(".txt",))
    assert (
        [path.name for path in found.companions] == ["a.TXT"]
        and names(found) == ["a.wav"]
        and ".txt files" not in found.left_out
    )


def test_files_and_folders_as_words(tmp_path):
    put(tmp_path, "f/b.jpg", "f/a.jpg", "c.jpg", "f/x.txt")
    with pytest.warns(UserWarning, match="left out 1 .txt files"):
        assert files_among([tmp_path / "c.jpg", tmp_path / "f"], (".jpg",)) == [
            tmp_path / n for n in ("c.jpg", "f/a.jpg", "f/b.jpg")
        ]
    with pytest.raises(UserError, match="is a folder without a file that can be used"):
        files_among([tmp_path / "f"], (".png",))


def test_places_are_found_or_what_to_name_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path, "clips/a.wav")
    assert folder_at("~/clips/", "Source", "sounds") == tmp_path / "clips"
    assert file_at("~/clips/a.wav", "Source", "a sound") == tmp_path / "clips/a.wav"
    for path, part in (
        ("", "no path given; pass --path FOLDER"),
        (f"{tmp_path}/clips/*.wav", "patterns are not looked up"),
        (f"{tmp_path}/clips/a.wav", "is a file"),
        (f"{tmp_path}/clip", "no such folder"),
        (f"{tmp_path}/no/such/place", f"{tmp_path} is there"),
        ("~nobody-here/x", "does not know"),
    ):
        with pytest.raises(UserError) as error:
            folder_at(path, "Source", "sounds")
        assert part in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="is a folder, and Source wants a file"):
        file_at(tmp_path / "clips", "Source", "a sound")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_file_of_a_source(tmp_path):
    """It would be waited for without end, and holds what it says once."""
    os.mkfifo(tmp_path / "p.txt")
    for source in (TextFile(str(tmp_path / "p.txt")), JetFile(str(tmp_path / "p.txt"))):
        with pytest.raises(UserError, match="p.txt: is a pipe or a device"):
            source.check()
