"""What is done to signals is counted and said once, with the first example."""

import warnings

from mmtok.io.tally import MOST_KINDS, Tally

RESAMPLED = "resampled from 22,050 to 16,000 Hz"


def told(act):
    """The lines that a piece of work says."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(warning.message) for warning in caught]


def clips(n, every=1, reported=None):
    def work():
        with Tally("clips", reported) as tally:
            for i in range(n):
                tally.count()
                if i % every == 0:
                    tally.add(RESAMPLED, f"{i}.wav")

    return work


def test_a_corpus_is_one_line_with_the_count_and_the_first():
    assert told(clips(13_100)) == [f"13,100 of 13,100 clips were {RESAMPLED} (first: 0.wav)"]
    assert told(clips(20, every=20)) == [f"1 of 20 clips was {RESAMPLED} (first: 0.wav)"]
    assert told(clips(0)) == []


def test_one_signal_is_one_line_whatever_was_done():
    def work():
        with Tally("clips") as tally:
            tally.count()
            tally.add("mixed down from 2 channels", "a.wav")
            tally.add(RESAMPLED, "a.wav")

    assert told(work) == [f"a.wav was mixed down from 2 channels, {RESAMPLED}"]


def test_passes_over_the_same_signals_speak_once_together():
    reported = set()
    assert len(told(clips(5, reported=reported))) == 1
    assert told(clips(5, reported=reported)) == []


def test_what_was_counted_is_said_when_the_work_breaks_off():
    def work():
        try:
            with Tally("clips") as tally:
                tally.count(3)
                tally.add("dropped: no transcript", "b.wav", 2)
                raise KeyError
        except KeyError:
            pass

    assert told(work) == ["2 of 3 clips were dropped: no transcript (first: b.wav)"]


def test_what_differs_from_file_to_file_does_not_fill_the_screen():
    def work():
        with Tally("clips") as tally:
            for i in range(100):
                tally.count()
                tally.add(f"resampled from {i} to 16,000 Hz", f"{i}.wav")

    lines = told(work)
    assert len(lines) == MOST_KINDS + 1
    assert lines[-1].startswith(
        "92 more things were done to 92 clips; the first: 8.wav was resampled from 8 "
    )
