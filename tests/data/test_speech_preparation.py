"""Channels become one, at the tokenizer's rate; where the mix cancels them, that is said."""

import numpy as np
import pytest

from mmtok.data.speech_preparation import SpeechPreparation, mix_loss_db
from mmtok.errors import UserError
from mmtok.io.tally import Tally
from mmtok.sources.base import Sound

TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)).astype(np.float32)
OTHER = (0.5 * np.sin(2 * np.pi * 613 * np.arange(16_000) / 16_000)).astype(np.float32)


def prepared(samples, rate_hz=16_000, **how):
    tally = Tally("clips")
    return SpeechPreparation(**how).prepare(
        Sound(samples, rate_hz), "a.wav", tally, rate_hz=16_000
    ), list(tally.counts)


def stereo(left, right):
    return np.stack([left, right], 1)


def test_mono_at_the_rate_is_taken_as_it_is():
    for samples in (TONE, TONE[:, None]):
        out, said = prepared(samples)
        assert np.array_equal(out, TONE) and said == []


@pytest.mark.parametrize(
    "right, lost_db, warned",
    [
        (TONE, 0, False),
        (0.5 * TONE, 0.45, False),
        (OTHER, 3.01, False),
        (0 * TONE, 3.01, False),
        (-TONE, 200, True),
        (-0.9 * TONE, 25.59, True),
        (-0.3 * TONE, 6.49, True),
    ],
)
def test_a_mix_is_the_average_and_what_cancels_is_said(right, lost_db, warned):
    out, said = prepared(stereo(TONE, right))
    assert np.allclose(out, (TONE + right) / 2, atol=1e-6)
    assert mix_loss_db(stereo(TONE, right), out) == pytest.approx(lost_db, abs=0.02)
    assert said[0] == "mixed down from 2 channels"
    assert (
        any("more than 3 dB weaker" in what and "channel, left" in what for what in said) == warned
    )


def test_silence_and_many_channels_that_agree_are_no_loss():
    assert len(prepared(np.zeros((100, 2), np.float32))[1]) == 1
    assert len(prepared(np.stack([TONE] * 6, 1))[1]) == 1


@pytest.mark.parametrize("channel, index", [("left", 0), ("right", 1), (0, 0), (2, 2)])
def test_one_channel_is_taken_alone(channel, index):
    samples = np.stack([TONE, -TONE, OTHER], 1)
    out, said = prepared(samples, channel=channel)
    assert np.array_equal(out, samples[:, index]) and said == [f"cut to channel {channel} of 3"]
    assert np.array_equal(prepared(TONE, channel=channel)[0], TONE)  # of one there is no choice


def test_a_rate_is_made_the_tokenizers():
    out, said = prepared(TONE[:8_000], 8_000)
    assert len(out) == 16_000 and said == ["resampled from 8,000 to 16,000 Hz"]


@pytest.mark.parametrize(
    "samples, how, reason",
    [
        (np.zeros((10, 2)), {"channel": 2}, "it has 2 channels"),
        (np.zeros((2, 16_000)), {}, r"expected samples of shape .*got \(2, 16000\)"),
        (np.zeros((10, 2, 2)), {}, "expected samples of shape"),
        (np.zeros((10, 2), np.int16), {}, "divide 16-bit samples by 32768"),
        (np.zeros(10), {"channel": -1}, "channel is -1"),
    ],
)
def test_what_is_no_clip_is_refused(samples, how, reason):
    with pytest.raises(UserError, match=reason):
        prepared(samples, **how)
