"""Word, character and phoneme errors on known examples."""

import math

import numpy as np
import pytest

from mmtok.metrics.speech_text import (
    character_error_rate,
    edit_counts,
    word_counts,
    word_error_rate,
)


@pytest.mark.parametrize(
    "references, hypotheses, rate",
    [
        (["three one four"], ["three one four"], 0),
        (["three one four"], ["three four"], 1 / 3),  # a deletion
        (["three one four"], ["three one one four"], 1 / 3),  # an insertion
        (["three one four"], ["three nine four"], 1 / 3),  # a substitution
        (["one two", "three"], ["", "three three"], 1),  # summed before dividing
        (["one"], ["two three four"], 3),  # may exceed one
        ([""], [""], 0),
        ([""], ["one"], math.inf),
    ],
)
def test_word_error_rate_of_hand_examples(references, hypotheses, rate):
    assert word_error_rate(references, hypotheses) == pytest.approx(rate)


def test_error_rates_equal_jiwers():
    jiwer = pytest.importorskip("jiwer")
    rng = np.random.default_rng(0)

    def draw():
        return [" ".join(rng.choice(list("abcd"), rng.integers(1, 9))) for _ in range(50)]

    references = draw()
    hypotheses = draw()
    for ours, theirs in ((word_error_rate, jiwer.wer), (character_error_rate, jiwer.cer)):
        assert ours(references, hypotheses) == pytest.approx(theirs(references, hypotheses))


def test_phonemes_are_counted_like_words():
    counts = edit_counts([list("abcd"), []], [list("abd"), list("x")])
    assert counts.edits.tolist() == [1, 1] and counts.lengths.tolist() == [4, 0]
    assert counts.rate == 0.5
    with pytest.raises(ValueError):
        edit_counts([["a"]], [])


def test_errors_are_of_spoken_forms():
    assert word_error_rate(["Hello, the 3rd world."], ["hello the third world"]) == 0
    assert character_error_rate(["Ab-c"], ["ab d"]) == 0.25


def test_an_interval_holds_the_rate():
    references = ["one two three"] * 30
    heard = ["one two three"] * 20 + ["one two"] * 10
    value, low, high, n = word_counts(references, heard).estimate()
    assert value == pytest.approx(1 / 9) and 0.04 < low < value < high < 0.2 and n == 30
    assert math.isnan(word_counts(["one"], [""]).estimate().low)
