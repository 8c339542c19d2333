"""Progress in a pipe is plain lines on stderr; the items pass through."""

import pytest

from mmtok.progress import Progress, track


def test_the_items_pass_through_and_the_count_is_said(capsys):
    assert list(track(range(3), "count", "things")) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == "" and err == "count: 3/3 things (0 s)\n"


def test_lines_come_no_faster_than_asked(capsys):
    with Progress("a", 100, every_s=1000) as slow, Progress("b", 3, every_s=0) as quick:
        for _ in range(3):
            slow.advance()
            quick.advance(note="loss 1.5")
    err = capsys.readouterr().err.splitlines()
    assert err == ["b: 1/3 (0 s) loss 1.5", "b: 2/3 (0 s) loss 1.5", "b: 3/3 (0 s) loss 1.5", "b: 3/3 (0 s) loss 1.5", "a: 3/100 (0 s)"]


def test_an_error_is_not_followed_by_a_count(capsys):
    with pytest.raises(ValueError), Progress("a", 2):
        raise ValueError
    assert capsys.readouterr().err == ""
