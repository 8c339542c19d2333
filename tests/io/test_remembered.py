"""Tests of mmtok.io.remembered: found once a version of a file."""

import pytest

from mmtok.io.remembered import Remembered


def test_what_was_found_stands_until_the_file_changes(tmp_path):
    calls = []
    remembered = Remembered(2)

    def find(name, *about):
        path = tmp_path / name

        def look():
            calls.append((name, *about))
            return path.read_text()

        return remembered(path, look, *about)

    for name in "abc":
        (tmp_path / name).write_text(name)
    assert [find("a"), find("a"), find("a", 1), find("a")] == ["a"] * 4
    assert calls == [("a",), ("a", 1)]
    (tmp_path / "a").write_text("other")
    assert find("a") == "other" and calls[2:] == [("a",)]
    assert find("b") == "b" and find("a") == "other" and len(calls) == 4
    assert find("c") == "c" and find("b") == "b"  # only the last two are remembered
    assert calls[4:] == [("c",), ("b",)]
    remembered.forget()
    assert find("b") == "b" and len(calls) == 7


def test_what_is_raised_is_not_remembered(tmp_path):
    remembered = Remembered(2)
    with pytest.raises(FileNotFoundError):
        remembered(tmp_path / "a", str)
    (tmp_path / "a").write_text("a")
    with pytest.raises(ZeroDivisionError):
        remembered(tmp_path / "a", lambda: 1 / 0)
    assert remembered(tmp_path / "a", lambda: 3) == 3
