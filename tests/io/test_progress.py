"""Progress in a pipe is plain lines on stderr; the items pass through."""

import time

import pytest

from mmtok.io.progress import Pace, Progress, span_text, track


@pytest.fixture
def clock(monkeypatch):
    """clock(3.5): so many seconds pass."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def pace_of(*seconds):
    pace = Pace()
    for x in seconds:
        pace.add(1, x)
    return pace.seconds


def test_the_pace_is_that_of_what_is_warm():
    assert pace_of(60, 0.3) is None and pace_of(0.2, 0.3) is None
    assert pace_of(60, 0.3, 0.3, 0.3) == pytest.approx(0.3)  # the first step compiles
    assert pace_of(60, 8, *[0.3] * 8) == pytest.approx(0.3)
    assert pace_of(*[0.3] * 10) == pytest.approx(0.3)
    assert pace_of(*[0.3] * 9, 3.0) == pytest.approx(0.57)  # a checkpoint counts at its share
    assert pace_of(9, *[0] * 3, 9, *[0] * 3) == pytest.approx(
        18 / 8
    )  # four processes hand in at once: the first is as the others
    assert pace_of(*[5] * 50, *[0.5] * 100) == pytest.approx(0.5)  # what is long ago is forgotten


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.01, "1 s"),
        (45.2, "45 s"),
        (89, "89 s"),
        (90, "2 min"),
        (840, "14 min"),
        (5340, "89 min"),
        (12_000, "3 h 20 min"),
        (216_000, "2.5 days"),
    ],
)
def test_times_in_words(seconds, text):
    assert span_text(seconds) == text


def test_lines_in_a_pipe_tell_the_time_left(capsys, clock):
    with Progress("train", 100, "steps", every_s=30) as progress:
        assert progress.left == ""
        for seconds in (40, *[2] * 20):
            clock(seconds)
            progress.advance()
        assert progress.left == "about 3 min left"
        for _ in range(79):
            clock(0)
            progress.advance()
    first, second, last = capsys.readouterr().err.splitlines()
    assert (
        first == "train: 1/100 steps (40 s)"
        and second == "train: 16/100 steps (70 s, about 3 min left)"
    )
    assert last == "train: 100/100 steps (80 s)"


def test_what_was_done_before_is_no_part_of_the_pace(clock):
    with Progress("train", 1000, done=900, every_s=1e9) as progress:
        for _ in range(10):
            clock(6)
            progress.advance()
        assert progress.left == "about 9 min left"


def test_a_bar_on_a_terminal_tells_it_too(clock):
    from mmtok.io import progress as room

    bar = room._rich_bar()
    assert any(
        "left" in column.text_format for column in bar.columns if hasattr(column, "text_format")
    )


def test_the_items_pass_through_and_the_count_is_said(capsys):
    assert list(track(range(3), "count", "things")) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == "" and err == "count: 3/3 things (0 s)\n"


def test_lines_come_no_faster_than_asked(capsys, clock):
    with Progress("a", 100, every_s=1000) as slow, Progress("b", 3, every_s=0) as quick:
        for _ in range(3):
            slow.advance()
            quick.advance(note="loss 1.5")
    err = capsys.readouterr().err.splitlines()
    assert err == [
        "b: 1/3 (0 s) loss 1.5",
        "b: 2/3 (0 s) loss 1.5",
        "b: 3/3 (0 s) loss 1.5",
        "a: 3/100 (0 s, about 1 s left)",
    ]


def test_an_error_is_not_followed_by_a_count(capsys):
    with pytest.raises(ValueError), Progress("a", 2):
        raise ValueError
    assert capsys.readouterr().err == ""


def test_what_is_done_never_passes_the_total(capsys, clock):
    with Progress("tokenise", 3, "examples", every_s=1) as progress:
        clock(2)
        progress.advance(5)
    assert "5/5 examples" in capsys.readouterr().err and progress.left == ""


def test_the_last_line_is_said_once_however_slow_the_work(capsys, clock):
    with Progress("slow", 2) as progress:
        for _ in range(2):
            clock(60)
            progress.advance()
    assert capsys.readouterr().err.count("2/2") == 1
